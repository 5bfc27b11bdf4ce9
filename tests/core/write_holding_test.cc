#include "core/sched/write_holding.h"

#include <gtest/gtest.h>

namespace cpploop {
namespace {

class WriteHoldingTest : public ::testing::Test {
 protected:
  // A turn of callbacks that write, each over `distance` after the one before.
  void turn(int writers, std::int64_t distance) {
    for (int i = 0; i < writers; ++i) {
      write_for(distance);
    }
    holding_.turn_over();
  }
  void write_for(std::int64_t duration) {
    holding_.start_timing(now_);
    holding_.note_writer();
    end_after(duration);
    holding_.stop_timing();
  }
  void end_after(std::int64_t duration) {
    now_ += duration;
    holding_.callback_over(++serial_, now_);
  }

  WriteHolding holding_;
  std::int64_t now_ = 1'000;
  std::uint64_t serial_ = 0;
};

TEST_F(WriteHoldingTest, PaysForNobodyAtFirst) {
  EXPECT_TRUE(holding_.allowed());
  EXPECT_FALSE(holding_.pays());
  EXPECT_FALSE(holding_.timing());
}

TEST_F(WriteHoldingTest, PaysWhereWritersAreFarApartUntilTheyAreNear) {
  for (int i = 0; i < 10; ++i) {
    turn(8, 3'000);
  }
  EXPECT_FALSE(holding_.pays());
  for (int i = 0; i < 10; ++i) {
    turn(8, 12'000);
  }
  EXPECT_TRUE(holding_.pays());
  for (int i = 0; i < 10; ++i) {
    turn(8, 6'000);  // Held, the same callbacks are nearer to each other.
  }
  EXPECT_TRUE(holding_.pays());
  for (int i = 0; i < 10; ++i) {
    turn(8, 2'000);
  }
  EXPECT_FALSE(holding_.pays());
}

TEST_F(WriteHoldingTest, OneLongCallbackMakesNobodyFar) {
  for (int i = 0; i < 10; ++i) {
    turn(8, 3'000);
  }
  turn(2, 1'000'000'000);
  EXPECT_FALSE(holding_.pays());
}

TEST_F(WriteHoldingTest, DistancesEndWithTheTurn) {
  for (int i = 0; i < 100; ++i) {
    turn(1, 50'000);
  }
  EXPECT_FALSE(holding_.pays()) << "a writer that is alone in its turn is far from nobody";
}

TEST_F(WriteHoldingTest, PaysInTheTurnAfterOneWithMany) {
  turn(11, 1'000);
  EXPECT_FALSE(holding_.pays());
  turn(12, 1'000);
  EXPECT_TRUE(holding_.pays());
  turn(0, 0);
  EXPECT_FALSE(holding_.pays());
}

TEST_F(WriteHoldingTest, SlownessIsKnownOfWhatCameSince) {
  EXPECT_TRUE(holding_.slow_since(0)) << "of a socket that never wrote nothing is known";
  write_for(10'000'000);
  EXPECT_FALSE(holding_.slow_since(serial_)) << "just not slow";
  write_for(10'000'001);
  EXPECT_TRUE(holding_.slow_since(serial_));
  EXPECT_TRUE(holding_.slow_since(serial_ - 1)) << "what it had written would have waited";
  write_for(1'000);
  EXPECT_FALSE(holding_.slow_since(serial_));
}

TEST_F(WriteHoldingTest, CallbacksAreTimedWhileSomethingIsHeld) {
  holding_.start_timing(now_);
  holding_.note_writer();
  holding_.begin();
  end_after(400'000);
  EXPECT_TRUE(holding_.timing());
  EXPECT_FALSE(holding_.held_long_enough(now_));
  end_after(700'000);  // Writes nothing.
  EXPECT_TRUE(holding_.held_long_enough(now_));
  end_after(20'000'000);
  EXPECT_TRUE(holding_.slow_since(serial_));
  holding_.turn_over();
  EXPECT_FALSE(holding_.timing());
}

}  // namespace
}  // namespace cpploop

#include "core/net/stream_socket.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Lines;
using testing::ScriptedEngine;
using testing::socket_pair;
using testing::SocketPair;
using testing::some_fd;
using testing::StreamOwner;
using Sizes = std::vector<std::size_t>;

class StreamSocketTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kFarNs = 50'000;

  // Callbacks take no time but what a test lets pass.
  StreamSocketTest() {
    loop_.clock.set(kNanosecondsPerSecond);
    loop_.engine.set_writing_clock(&loop_.clock);
  }
  [[nodiscard]] const std::string& sent() { return backend().sent(fd_); }
  [[nodiscard]] const Sizes& offers() { return backend().offers(fd_); }
  [[nodiscard]] ScriptedBackend& backend() { return *loop_.backend; }
  [[nodiscard]] StreamSocket& socket() { return *owner_.socket; }
  // Writes the strings from one callback of the loop's.
  void write_in_callback(const std::vector<std::string>& strings) {
    loop_.in_callback([&] {
      for (const std::string& text : strings) {
        owner_.write(text);
      }
    });
  }
  // The kernel has room again: one turn tells the socket.
  void drain() {
    backend().make_room(fd_);
    loop_.turn();
  }
  // Leaves `queued` bytes behind a full kernel buffer.
  void block_with(std::size_t queued) {
    backend().fill(fd_);
    owner_.write(std::string(queued, 'q'));
    ASSERT_EQ(socket().queued_bytes(), queued);
  }

  // Has the socket write in callbacks that are quick and yet far between, and forgets what it
  // wrote.
  void learn_quick() {
    learn_distance(kFarNs);
    for (int i = 0; i < 6; ++i) {
      loop_.in_callback([&] { owner_.write("."); });
    }
    backend().forget_sent(fd_);
  }
  // A turn with what is queued and, behind it, a write that is not held.
  void expect_next_write_at_once() {
    loop_.call_soon([&] {
      owner_.write("b");
      EXPECT_EQ(sent(), "ab");
    });
    loop_.turn();
  }
  // One turn of callbacks of another socket's.
  void learn_distance(std::int64_t distance_ns) {
    StreamOwner other{loop_.engine, some_fd()};
    for (int i = 0; i < 60; ++i) {
      loop_.call_soon([this, &other, distance_ns] {
        other.write(".");
        loop_.clock.advance(distance_ns);
      });
    }
    loop_.turn();
    loop_.turn();  // One with few writers.
  }
  // What makes a callback slow.
  void linger() { loop_.clock.advance(WriteHolding::kSlowNs + 1); }

  ScriptedEngine loop_;
  StreamOwner owner_{loop_.engine, some_fd()};
  int fd_ = owner_.socket->fd();
};

// Writing.

TEST_F(StreamSocketTest, FirstWriteOfACallbackGoesOutAtOnce) {
  loop_.in_callback([&] {
    owner_.write("first");
    EXPECT_EQ(sent(), "first");
  });
  EXPECT_EQ(offers(), (Sizes{5}));
}

TEST_F(StreamSocketTest, LaterWritesOfACallbackAreGatheredIntoOneSend) {
  loop_.in_callback([&] {
    owner_.write("one");
    owner_.write("two");
    owner_.write("three");
    EXPECT_EQ(sent(), "one");
    EXPECT_EQ(socket().queued_bytes(), 8U);
  });
  EXPECT_EQ(sent(), "onetwothree");
  EXPECT_EQ(offers(), (Sizes{3, 8}));
}

TEST_F(StreamSocketTest, GatheredBytesAreOutBeforeTheNextCallbackRuns) {
  loop_.call_soon([&] {
    owner_.write("a");
    owner_.write("b");
  });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "ab"); });
}

// Holding a write until the turn's other callbacks have run.

TEST_F(StreamSocketTest, WritesOfQuickCallbacksLeaveWhenTheTurnEnds) {
  learn_quick();
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.call_soon([&] { owner_.write("b"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), ""); });
  EXPECT_EQ(sent(), "ab");
  EXPECT_EQ(offers(), (Sizes{2}));
}

TEST_F(StreamSocketTest, WriteOfACallbackThatIsAloneInItsTurnGoesOutAtOnce) {
  learn_quick();
  loop_.in_callback([&] {
    owner_.write("a");
    EXPECT_EQ(sent(), "a");
  });
}

TEST_F(StreamSocketTest, WriteOfTheLastCallbackJoinsWhatIsHeld) {
  learn_quick();
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.in_callback([&] {
    owner_.write("b");
    EXPECT_EQ(sent(), "");
  });
  EXPECT_EQ(offers(), (Sizes{2}));
}

TEST_F(StreamSocketTest, LargeWriteIsNotHeld) {
  learn_quick();
  const std::string large(std::size_t{16} * 1024 + 1, 'x');
  loop_.call_soon([&] {
    owner_.write(large);
    EXPECT_EQ(sent(), large);
  });
  loop_.turn();
}

TEST_F(StreamSocketTest, WritesThatComeCloseBehindEachOtherAreNotHeld) {
  learn_quick();
  learn_distance(0);
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "a"); });
}

TEST_F(StreamSocketTest, WritesOfATurnWithManyWritersAreHeldHoweverCloseTheyAre) {
  learn_quick();
  learn_distance(0);
  for (int turn = 0; turn < 2; ++turn) {
    for (int i = 0; i < 32; ++i) {
      loop_.call_soon([&] { owner_.write("."); });
    }
    loop_.turn();
    backend().forget_sent(fd_);
  }
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), ""); });
  loop_.call_soon([&] { owner_.write("b"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "ab") << "that one had few"; });
}

TEST_F(StreamSocketTest, NothingIsHeldBeforeFourQuickCallbacks) {
  learn_distance(kFarNs);
  for (const char* text : {"1", "2", "3", "4"}) {
    loop_.call_soon([&] { owner_.write(text); });
    loop_.in_callback([&] { EXPECT_EQ(sent().back(), *text); });
  }
  loop_.call_soon([&] { owner_.write("5"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "1234") << "from now on it waits"; });
  EXPECT_EQ(sent(), "12345");
}

TEST_F(StreamSocketTest, SlowCallbackEndsTheHolding) {
  learn_quick();
  loop_.call_soon([&] {
    owner_.write("a");
    linger();
  });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "a") << "a millisecond is the most it waits"; });
  expect_next_write_at_once();
}

TEST_F(StreamSocketTest, WriteIsHeldForAMillisecondAtMost) {
  learn_quick();
  loop_.call_soon([&] {
    owner_.write("a");
    loop_.clock.advance(WriteHolding::kLongestNs);
  });
  loop_.call_soon([&] {
    EXPECT_EQ(sent(), "");
    loop_.clock.advance(1);
  });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "a"); });
}

TEST_F(StreamSocketTest, SlowCallbackThatWritesNothingEndsTheHoldingToo) {
  learn_quick();
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.call_soon([&] { linger(); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), "a"); });
  expect_next_write_at_once();
}

TEST_F(StreamSocketTest, SlowCallbackBetweenTwoTurnsOfWritingDoesNotMatter) {
  learn_quick();
  loop_.in_callback([&] { linger(); });
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.in_callback([&] { EXPECT_EQ(sent(), ""); });
  EXPECT_EQ(sent(), "a");
}

TEST_F(StreamSocketTest, HeldBytesLeaveWithTheTurnThatStopsTheLoop) {
  learn_quick();
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.call_soon([&] { loop_.engine.stop(); });
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(sent(), "a");
}

TEST_F(StreamSocketTest, HeldBytesLeaveWhenAnExceptionEndsTheTurn) {
  learn_quick();
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.call_soon([&] { loop_.engine.interrupt(); });
  loop_.call_soon([] {});
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(sent(), "a");
}

TEST_F(StreamSocketTest, HeldBytesLeaveBeforeTheSocketIsRead) {
  learn_quick();
  socket().start_reading();
  loop_.turn();  // From now on the kernel is asked.
  backend().bring(fd_, "question");
  owner_.on_data = [&] { EXPECT_EQ(sent(), "a"); };
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.turn();
  EXPECT_EQ(owner_.received, "question");
}

TEST_F(StreamSocketTest, HeldWriteHearsOfTheResetBeforeTheReadDoes) {
  learn_quick();
  socket().start_reading();
  loop_.turn();
  backend().bring_error(fd_, ETIMEDOUT);
  backend().fail_send(fd_, ECONNRESET);
  loop_.call_soon([&] { owner_.write("a"); });
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(ECONNRESET), "lost is due"}));
}

TEST_F(StreamSocketTest, FlushSendsWhatIsHeld) {
  learn_quick();
  loop_.call_soon([&] {
    owner_.write("a");
    socket().flush_unless_held();
    EXPECT_EQ(sent(), "");
    socket().flush();
    EXPECT_EQ(sent(), "a");
  });
  loop_.turn();
}

TEST_F(StreamSocketTest, SocketThatIsNotQuickFlushesUnasked) {
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    socket().flush_unless_held();
    EXPECT_EQ(sent(), "ab");
  });
}

TEST_F(StreamSocketTest, EveryWriteOutsideACallbackGoesOutAtOnce) {
  owner_.write("a");
  owner_.write("b");
  owner_.write("c");
  EXPECT_EQ(offers(), (Sizes{1, 1, 1}));
}

TEST_F(StreamSocketTest, GatheringEndsAt64KiB) {
  loop_.in_callback([&] {
    owner_.write("x");
    owner_.write(std::string(StreamSocket::kGatherLimit - 1, 'y'));
    EXPECT_EQ(sent().size(), 1U);
    owner_.write("z");
    EXPECT_EQ(sent().size(), StreamSocket::kGatherLimit + 1);
    EXPECT_EQ(socket().queued_bytes(), 0U);
    owner_.write("again gathered");
    EXPECT_EQ(sent().size(), StreamSocket::kGatherLimit + 1);
  });
  EXPECT_EQ(offers(), (Sizes{1, StreamSocket::kGatherLimit, 14}));
}

TEST_F(StreamSocketTest, FlushSendsWhatIsGathered) {
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    socket().flush();
    EXPECT_EQ(sent(), "ab");
    socket().flush();
  });
  EXPECT_EQ(offers(), (Sizes{1, 1}));
}

TEST_F(StreamSocketTest, MoreSegmentsThanOneSendTakesGoOutInSeveral) {
  loop_.in_callback([&] {
    owner_.write("x");
    for (int i = 0; i < 3000; ++i) {
      owner_.write("y");
    }
  });
  EXPECT_EQ(sent().size(), 3001U);
  EXPECT_EQ(offers(), (Sizes{1, 1024, 1024, 952}));
}

// The habit of writing a header and then a body.

TEST_F(StreamSocketTest, HabitIsBelievedAfterTwoCallbacksAndThenCorksTheFirstWrite) {
  write_in_callback({"h1", "b1"});
  write_in_callback({"h2", "b2"});
  EXPECT_EQ(offers(), (Sizes{2, 2, 2, 2}));
  loop_.in_callback([&] {
    owner_.write("h3");
    EXPECT_EQ(offers().size(), 4U) << "the header waits for its body";
    owner_.write("b3");
  });
  EXPECT_EQ(offers(), (Sizes{2, 2, 2, 2, 4}));
  EXPECT_EQ(sent(), "h1b1h2b2h3b3");
}

TEST_F(StreamSocketTest, OneDoubleWriteIsNoHabitYet) {
  write_in_callback({"h1", "b1"});
  loop_.in_callback([&] {
    owner_.write("h2");
    EXPECT_EQ(sent(), "h1b1h2");
  });
}

TEST_F(StreamSocketTest, CorkedWriteNeverWaitsPastItsCallback) {
  write_in_callback({"h1", "b1"});
  write_in_callback({"h2", "b2"});
  write_in_callback({"alone"});
  EXPECT_EQ(sent(), "h1b1h2b2alone");
}

TEST_F(StreamSocketTest, SingleWriteUnlearnsTheHabit) {
  write_in_callback({"h1", "b1"});
  write_in_callback({"h2", "b2"});
  write_in_callback({"alone"});
  loop_.in_callback([&] {
    owner_.write("next");
    EXPECT_EQ(sent(), "h1b1h2b2alonenext") << "sent at once again";
  });
}

TEST_F(StreamSocketTest, CallbacksThatWriteNothingDoNotTouchTheHabit) {
  write_in_callback({"h1", "b1"});
  loop_.turn();
  write_in_callback({"h2", "b2"});
  loop_.turn();
  loop_.in_callback([&] {
    owner_.write("h3");
    EXPECT_EQ(offers().size(), 4U);
  });
}

TEST_F(StreamSocketTest, WritesOutsideCallbacksAreNeverCorked) {
  write_in_callback({"h1", "b1"});
  write_in_callback({"h2", "b2"});
  owner_.write("now");
  EXPECT_EQ(sent(), "h1b1h2b2now");
}

// A kernel that takes less.

TEST_F(StreamSocketTest, ShortSendQueuesTheRestAndSendsItWhenThereIsRoom) {
  backend().limit_send(fd_, 3);
  owner_.write("abcdef");
  EXPECT_EQ(sent(), "abc");
  EXPECT_EQ(socket().queued_bytes(), 3U);
  loop_.turn();
  EXPECT_EQ(sent(), "abc");
  drain();
  EXPECT_EQ(sent(), "abcdef");
  EXPECT_EQ(owner_.log, (Lines{"drained"}));
  backend().apply_changes();  // Put off while there was nothing to poll for.
  EXPECT_EQ(backend().told(fd_), 0) << "nothing more to wait for";
}

TEST_F(StreamSocketTest, WouldBlockQueuesEverything) {
  backend().fill(fd_);
  owner_.write("abc");
  EXPECT_EQ(socket().queued_bytes(), 3U);
  drain();
  EXPECT_EQ(sent(), "abc");
}

TEST_F(StreamSocketTest, WritesWhileBlockedWaitBehindTheOthers) {
  block_with(2);
  const std::size_t tries = offers().size();
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
  });
  owner_.write("c");
  EXPECT_EQ(offers().size(), tries) << "a kernel known to be full is not asked";
  drain();
  EXPECT_EQ(sent(), "qqabc");
}

TEST_F(StreamSocketTest, RetryAsksAKernelThatWasFull) {
  socket().set_limits(3, 1);
  block_with(5);
  (void)owner_.take_log();
  socket().retry_send();
  EXPECT_EQ(socket().queued_bytes(), 5U) << "still full";
  EXPECT_TRUE(owner_.log.empty());
  backend().make_room(fd_);
  socket().retry_send();
  EXPECT_EQ(sent(), "qqqqq");
  EXPECT_EQ(owner_.take_log(), (Lines{"resume", "drained"}));
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
}

TEST_F(StreamSocketTest, RetryOfAClosingSocketConcludesAtTheNextPoll) {
  block_with(4);
  owner_.close();
  backend().make_room(fd_);
  socket().retry_send();
  EXPECT_EQ(sent(), "qqqq");
  EXPECT_EQ(owner_.log, Lines());
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"drained", "closed"}));
}

TEST_F(StreamSocketTest, RetryOfAClosingSocketHearsOfAPeerThatIsGone) {
  block_with(4);
  owner_.close();
  backend().make_room(fd_);
  backend().fail_send(fd_, EPIPE);
  socket().retry_send();
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
}

TEST_F(StreamSocketTest, RetryHearsOfAPeerThatIsGone) {
  block_with(5);
  backend().fail_send(fd_, EPIPE);
  backend().make_room(fd_);
  socket().retry_send();
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
  EXPECT_EQ(socket().queued_bytes(), 0U);
}

TEST_F(StreamSocketTest, ShortVectoredSendsResumeInsideASegment) {
  block_with(4);
  owner_.write("abcd");
  backend().make_room(fd_);
  backend().limit_send(fd_, 6);
  loop_.turn();
  EXPECT_EQ(sent(), "qqqqab");
  EXPECT_EQ(socket().queued_bytes(), 2U);
  drain();
  EXPECT_EQ(sent(), "qqqqabcd");
}

TEST_F(StreamSocketTest, SendErrorIsReportedAndDropsTheRest) {
  block_with(4);
  backend().fail_send(fd_, ECONNRESET);
  drain();
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(ECONNRESET), "lost is due"}));
  EXPECT_EQ(socket().queued_bytes(), 0U);
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, SendErrorOfADirectWriteIsReportedInsideTheWrite) {
  backend().fail_send(fd_, EPIPE);
  loop_.in_callback([&] {
    owner_.write("x");
    EXPECT_EQ(owner_.log.size(), 2U);
  });
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
}

TEST_F(StreamSocketTest, SendErrorOfGatheredBytesIsReportedAtTheEndOfTheCallback) {
  loop_.in_callback([&] {
    owner_.write("x");
    backend().fail_send(fd_, EPIPE);
    owner_.write("y");
    EXPECT_TRUE(owner_.log.empty());
  });
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
}

// Watermarks.

TEST_F(StreamSocketTest, PausesAboveHighAndResumesAtLow) {
  socket().set_limits(10, 4);
  backend().fill(fd_);
  owner_.write(std::string(10, 'x'));
  EXPECT_TRUE(owner_.log.empty()) << "the mark itself is not above it";
  owner_.write("y");
  EXPECT_EQ(owner_.take_log(), (Lines{"pause"}));
  EXPECT_TRUE(socket().writing_paused());
  owner_.write("z");
  EXPECT_TRUE(owner_.log.empty()) << "paused once";
  backend().make_room(fd_);
  backend().limit_send(fd_, 7);
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty()) << "five bytes left, four is low";
  backend().make_room(fd_);
  backend().limit_send(fd_, 1);
  loop_.turn();
  EXPECT_EQ(owner_.take_log(), (Lines{"resume"}));
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"drained"}));
}

TEST_F(StreamSocketTest, PauseIsJudgedAfterTheSend) {
  socket().set_limits(0, 0);
  write_in_callback({"a", "bcd", "e"});
  EXPECT_TRUE(owner_.log.empty()) << "everything went out, so nothing was above the mark";
  backend().limit_send(fd_, 2);
  owner_.write("abc");
  EXPECT_EQ(owner_.log, (Lines{"pause"}));
}

TEST_F(StreamSocketTest, LoweringTheLimitsPausesAtOnce) {
  block_with(100);
  EXPECT_TRUE(owner_.log.empty());
  socket().set_limits(99, 10);
  EXPECT_EQ(owner_.log, (Lines{"pause"}));
  EXPECT_EQ(socket().high_water(), 99U);
  EXPECT_EQ(socket().low_water(), 10U);
}

TEST_F(StreamSocketTest, SettingLimitsSendsWhatIsGatheredFirst) {
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("bcd");
    socket().set_limits(2, 1);
    EXPECT_EQ(sent(), "abcd");
  });
  EXPECT_TRUE(owner_.log.empty());
}

TEST_F(StreamSocketTest, DefaultsAre64KiBAndAQuarterOfIt) {
  EXPECT_EQ(socket().high_water(), 64U * 1024);
  EXPECT_EQ(socket().low_water(), 16U * 1024);
}

// Re-entrancy.

TEST_F(StreamSocketTest, ResumeWritingMayWrite) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.on_resume = [&] {
    owner_.write("A");
    owner_.write("B");
  };
  drain();
  EXPECT_EQ(sent(), "qqqqqAB");
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "drained"}));
}

TEST_F(StreamSocketTest, ResumeWritingMayFillTheKernelAgain) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.on_resume = [&] {
    owner_.on_resume = nullptr;
    backend().fill(fd_);
    owner_.write("again");
  };
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"pause", "resume", "pause"}));
  EXPECT_EQ(socket().queued_bytes(), 5U);
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"resume", "drained"}));
  EXPECT_EQ(sent(), "qqqqqagain");
}

TEST_F(StreamSocketTest, ResumeWritingMayClose) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.on_resume = [&] { owner_.close(); };
  drain();
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, ResumeWritingMayAbort) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.on_resume = [&] { owner_.abort(); };
  drain();
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "lost is due"}));
}

// A write after close() is taken while data is queued, and the last of it still ends the
// connection.
TEST_F(StreamSocketTest, ClosingSocketWhoseResumeWritingWritesIsClosedAllTheSame) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.close();
  owner_.on_resume = [&] {
    owner_.write("A");
    owner_.write("B");
    owner_.write("C");
  };
  drain();
  EXPECT_EQ(sent(), "qqqqqABC");
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "drained", "closed"}));
}

TEST_F(StreamSocketTest, ClosingSocketWhoseResumeWritingFillsTheKernelIsClosedLater) {
  socket().set_limits(1, 1);
  block_with(5);
  owner_.close();
  owner_.on_resume = [&] {
    owner_.on_resume = nullptr;
    owner_.write("A");
    backend().fill(fd_);
    owner_.write("B");
  };
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"pause", "resume"}));
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"drained", "closed"}));
  EXPECT_EQ(sent(), "qqqqqAB");
}

TEST_F(StreamSocketTest, DrainedOwnerThatAbortsIsNotToldOfItsEndTwice) {
  block_with(5);
  owner_.close();
  owner_.on_drain = [&] { owner_.abort(); };
  drain();
  EXPECT_EQ(owner_.log, (Lines{"drained", "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, DrainedOwnerThatClosesIsNotToldOfItsEndTwice) {
  block_with(5);
  owner_.on_drain = [&] { owner_.close(); };
  drain();
  EXPECT_EQ(owner_.log, (Lines{"drained", "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, DrainedOwnerOfAClosingSocketMayWrite) {
  block_with(5);
  owner_.close();
  owner_.on_drain = [&] {
    owner_.on_drain = nullptr;
    owner_.write("A");
    owner_.write("B");
  };
  drain();
  EXPECT_EQ(sent(), "qqqqqAB");
  EXPECT_EQ(owner_.log, (Lines{"drained", "closed"}));
}

TEST_F(StreamSocketTest, PauseWritingMayWrite) {
  socket().set_limits(3, 1);
  owner_.on_pause = [&] { owner_.write("more"); };
  backend().fill(fd_);
  owner_.write("four");
  EXPECT_EQ(owner_.log, (Lines{"pause"}));
  EXPECT_EQ(socket().queued_bytes(), 8U);
  drain();
  EXPECT_EQ(sent(), "fourmore");
}

TEST_F(StreamSocketTest, PauseWritingMayClose) {
  socket().set_limits(3, 1);
  owner_.on_pause = [&] { owner_.close(); };
  backend().fill(fd_);
  owner_.write("four");
  EXPECT_TRUE(socket().is_closing());
  drain();
  EXPECT_EQ(sent(), "four");
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "drained", "closed"}));
}

TEST_F(StreamSocketTest, PauseWritingMayAbortDuringClose) {
  socket().set_limits(1, 1);
  owner_.on_pause = [&] { owner_.abort(); };
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("bcd");
    backend().fill(fd_);
    owner_.close();
  });
  EXPECT_EQ(owner_.log, (Lines{"pause", "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, PauseWritingAtTheEndOfACallbackMayWriteToAnotherSocket) {
  StreamOwner other(loop_.engine, some_fd());
  const int other_fd = other.socket->fd();
  socket().set_limits(1, 1);
  owner_.on_pause = [&] {
    other.write("1");
    other.write("2");
  };
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("bcd");
    backend().fill(fd_);
    other.write("0");
    other.write("gathered");
  });
  EXPECT_EQ(backend().sent(other_fd), "0gathered12");
}

TEST_F(StreamSocketTest, SocketDestroyedWhileItWaitsForTheEndOfTheCallbackIsForgotten) {
  auto other = std::make_unique<StreamOwner>(loop_.engine, some_fd());
  const int other_fd = other->socket->fd();
  loop_.in_callback([&] {
    other->write("a");
    other->write("b");
    owner_.write("c");
    owner_.write("d");
    other.reset();
  });
  EXPECT_EQ(backend().sent(other_fd), "a");
  EXPECT_EQ(sent(), "cd");
}

TEST_F(StreamSocketTest, SocketDestroyedByAnothersFlushIsForgotten) {
  auto other = std::make_unique<StreamOwner>(loop_.engine, some_fd());
  socket().set_limits(1, 1);
  owner_.on_pause = [&] { other.reset(); };
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("bcd");
    backend().fill(fd_);
    other->write("e");
    other->write("f");
  });
  EXPECT_EQ(other, nullptr);
}

TEST_F(StreamSocketTest, OwnerThatIsDroppedBySendErrorAtTheEndOfACallbackOutlivesTheFlush) {
  owner_.drop_on_release = true;
  loop_.in_callback([&] {
    owner_.write("a");
    backend().fail_send(fd_, EPIPE);
    owner_.write("b");
  });
  EXPECT_EQ(owner_.socket, nullptr);
  EXPECT_EQ(owner_.holds, 0);
}

TEST_F(StreamSocketTest, OwnerThatIsDroppedByADeliveryOutlivesIt) {
  for (const bool while_receiving : {true, false}) {
    StreamOwner owner(loop_.engine, some_fd());
    const int fd = owner.socket->fd();
    owner.socket->start_reading();
    backend().fill(fd);
    owner.write("queued");
    loop_.turn();
    owner.drop_on_release = true;
    if (while_receiving) {
      backend().bring_error(fd, ECONNRESET);
    } else {
      backend().fail_send(fd, ECONNRESET);
      backend().make_room(fd);
    }
    loop_.turn();
    EXPECT_EQ(owner.socket, nullptr);
    EXPECT_EQ(owner.log.size(), 2U);
  }
}

// Reading.

TEST_F(StreamSocketTest, ReadsOnlyOnceStarted) {
  backend().bring(fd_, "data");
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
  socket().start_reading();
  loop_.turn();
  EXPECT_EQ(owner_.received, "data");
}

TEST_F(StreamSocketTest, PausedReadingDeliversNothingUntilResumed) {
  socket().start_reading();
  loop_.turn();
  EXPECT_TRUE(socket().pause_reading());
  EXPECT_FALSE(socket().pause_reading());
  backend().bring(fd_, "data");
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
  backend().apply_changes();  // Put off while there was nothing to poll for.
  EXPECT_EQ(backend().told(fd_), 0) << "a paused stream is not watched at all";
  EXPECT_TRUE(socket().resume_reading());
  EXPECT_FALSE(socket().resume_reading());
  loop_.turn();
  EXPECT_EQ(owner_.received, "data");
}

TEST_F(StreamSocketTest, PausingAndResumingInOneCallbackCostsNoSystemCall) {
  socket().start_reading();
  loop_.turn();
  backend().clear_log();
  loop_.in_callback([&] {
    EXPECT_TRUE(socket().pause_reading());
    EXPECT_TRUE(socket().resume_reading());
  });
  loop_.turn();
  for (const std::string& line : backend().log()) {
    EXPECT_EQ(line.find("tell"), std::string::npos) << line;
  }
}

TEST_F(StreamSocketTest, StartReadingOfAPausedSocketWaitsForResume) {
  EXPECT_TRUE(socket().pause_reading());
  socket().start_reading();
  backend().bring(fd_, "data");
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
}

TEST_F(StreamSocketTest, EndOfStreamIsTold) {
  socket().start_reading();
  backend().bring(fd_, "last");
  backend().bring_end(fd_);
  loop_.turn();
  owner_.on_end = [&] { socket().stop_reading_at_end(); };
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"bytes 4", "end"}));
  EXPECT_FALSE(socket().is_closing());
}

TEST_F(StreamSocketTest, HalfClosedSocketStillWrites) {
  socket().start_reading();
  backend().bring_end(fd_);
  owner_.on_end = [&] {
    socket().stop_reading_at_end();
    owner_.write("reply");
  };
  loop_.turn();
  EXPECT_EQ(sent(), "reply");
}

TEST_F(StreamSocketTest, ReceiveErrorIsTold) {
  socket().start_reading();
  backend().bring_error(fd_, ECONNRESET);
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"receive error " + std::to_string(ECONNRESET), "lost is due"}));
}

TEST_F(StreamSocketTest, WouldBlockIsNoNews) {
  socket().start_reading();
  loop_.turn();
  backend().next_poll({.events = {{backend().id_of(fd_), kIoReadable}}});
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
}

TEST_F(StreamSocketTest, OwnerWithoutABufferIsNotReadFor) {
  socket().start_reading();
  owner_.refuse_buffer = true;
  backend().bring(fd_, "data");
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty());
  owner_.refuse_buffer = false;
  loop_.turn();
  EXPECT_EQ(owner_.received, "data");
}

TEST_F(StreamSocketTest, OneReadAPollHoweverMuchWaits) {
  socket().start_reading();
  backend().bring(fd_, "a");
  backend().bring(fd_, "b");
  loop_.turn();
  EXPECT_EQ(owner_.received, "a");
  loop_.turn();
  EXPECT_EQ(owner_.received, "ab");
}

TEST_F(StreamSocketTest, FullReadsDoubleTheNextAndSmallOnesHalveIt) {
  constexpr std::size_t kSmallest = 16 * 1024;
  constexpr std::size_t kLargest = 256 * 1024;
  EXPECT_EQ(socket().receive_size(), kSmallest);
  socket().start_reading();
  backend().bring(fd_, std::string(2 * kLargest, 'x'));
  loop_.turn();
  EXPECT_EQ(socket().receive_size(), 2 * kSmallest);
  for (int i = 0; i < 10; ++i) {
    loop_.turn();
  }
  EXPECT_EQ(owner_.received.size(), 2 * kLargest);
  EXPECT_LE(socket().receive_size(), kLargest);
  for (int i = 0; i < 20; ++i) {
    backend().bring(fd_, "x");
    loop_.turn();
  }
  EXPECT_EQ(socket().receive_size(), kSmallest);
}

TEST_F(StreamSocketTest, OneSmallReadDoesNotShrinkTheNext) {
  socket().start_reading();
  backend().bring(fd_, std::string(16 * 1024, 'x'));
  loop_.turn();
  backend().bring(fd_, "x");
  loop_.turn();
  backend().bring(fd_, std::string(10 * 1024, 'x'));
  loop_.turn();
  backend().bring(fd_, "x");
  loop_.turn();
  EXPECT_EQ(socket().receive_size(), 32U * 1024);
}

TEST_F(StreamSocketTest, CallbackThatPausesKeepsTheNextChunkBack) {
  socket().start_reading();
  owner_.on_data = [&] { (void)socket().pause_reading(); };
  backend().bring(fd_, "a");
  backend().bring(fd_, "b");
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.received, "a");
}

// Closing.

TEST_F(StreamSocketTest, ClosingAnIdleSocketIsDueAtOnce) {
  socket().start_reading();
  EXPECT_TRUE(socket().close());
  EXPECT_TRUE(socket().is_closing());
  EXPECT_EQ(socket().lost_count(), 1U);
  EXPECT_FALSE(socket().close());
  EXPECT_FALSE(socket().force_close());
  backend().bring(fd_, "late");
  loop_.turn();
  EXPECT_TRUE(owner_.log.empty()) << "nothing is received after close()";
}

TEST_F(StreamSocketTest, CloseFlushesWhatIsGathered) {
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    owner_.close();
    EXPECT_EQ(sent(), "ab");
  });
  EXPECT_EQ(owner_.log, (Lines{"lost is due"}));
}

TEST_F(StreamSocketTest, CloseSendsWhatIsQueuedBeforeTheEnd) {
  block_with(5);
  owner_.close();
  EXPECT_TRUE(owner_.log.empty());
  EXPECT_EQ(socket().lost_count(), 0U);
  drain();
  EXPECT_EQ(sent(), "qqqqq");
  EXPECT_EQ(owner_.log, (Lines{"drained", "closed"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, CloseInsideADeliveryDropsTheReadsOfTheSamePoll) {
  StreamOwner other(loop_.engine, some_fd());
  other.socket->start_reading();
  socket().start_reading();
  backend().bring(fd_, "x");
  backend().bring(other.socket->fd(), "y");
  owner_.on_data = [&] { other.close(); };
  other.on_data = [&] { owner_.close(); };
  loop_.turn();
  EXPECT_EQ(owner_.received.size() + other.received.size(), 1U);
}

TEST_F(StreamSocketTest, AbortDropsWhatIsQueued) {
  block_with(5);
  owner_.abort();
  EXPECT_EQ(owner_.log, (Lines{"lost is due"}));
  EXPECT_EQ(owner_.owners, 0);
  drain();
  EXPECT_EQ(sent(), "");
}

TEST_F(StreamSocketTest, AbortAfterCloseDropsWhatCloseWouldHaveFlushed) {
  block_with(5);
  owner_.close();
  owner_.abort();
  owner_.abort();
  EXPECT_EQ(owner_.log, (Lines{"lost is due"}));
  drain();
  EXPECT_EQ(sent(), "");
}

TEST_F(StreamSocketTest, SendErrorWhileClosingEndsItOnce) {
  block_with(5);
  owner_.close();
  backend().fail_send(fd_, EPIPE);
  drain();
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, SendErrorDuringCloseEndsItOnce) {
  loop_.in_callback([&] {
    owner_.write("a");
    backend().fail_send(fd_, EPIPE);
    owner_.write("b");
    owner_.close();
  });
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EPIPE), "lost is due"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(StreamSocketTest, NothingIsKeptBackWhileSomebodyElseMayCloseTheDescriptor) {
  owner_.shares = true;
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    owner_.write("c");
    EXPECT_EQ(sent(), "abc");
  });
}

TEST_F(StreamSocketTest, NumberThatIsLostIsNotWrittenTo) {
  int shared_number = fd_;
  socket().share_number(&shared_number);
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    shared_number = -1;
  });
  EXPECT_EQ(sent(), "a");
  EXPECT_EQ(owner_.log, (Lines{"send error " + std::to_string(EBADF), "lost is due"}));
}

TEST_F(StreamSocketTest, NumberThatIsLostIsNotReadFrom) {
  int shared_number = fd_;
  socket().share_number(&shared_number);
  socket().start_reading();
  backend().bring(fd_, "somebody else's");
  shared_number = -1;
  drain();
  EXPECT_EQ(owner_.received, "");
  EXPECT_EQ(owner_.log, (Lines{"receive error " + std::to_string(EBADF), "lost is due"}));
}

TEST_F(StreamSocketTest, LostWritesAreCounted) {
  owner_.abort();
  socket().count_lost_write();
  socket().count_lost_write();
  EXPECT_EQ(socket().lost_count(), 3U);
}

TEST_F(StreamSocketTest, TakingTheDescriptorEndsTheRegistration) {
  socket().start_reading();
  loop_.turn();
  const UniqueFd fd = socket().take_fd();
  EXPECT_EQ(fd.get(), fd_);
  EXPECT_TRUE(testing::is_open(fd_));
  EXPECT_EQ(socket().fd(), -1);
  EXPECT_EQ(backend().told(fd_), 0);
}

TEST_F(StreamSocketTest, DestructionClosesTheDescriptorAndDropsTheQueue) {
  block_with(5);
  owner_.socket.reset();
  EXPECT_FALSE(testing::is_open(fd_));
  EXPECT_EQ(owner_.owners, 0);
  EXPECT_EQ(loop_.engine.backend().attached_count(), 0U);
}

// Half-closing, on a real socket because the shutdown is the kernel's.

class StreamSocketEofTest : public ::testing::Test {
 protected:
  // 1: a byte or more; 0: the end; -1: nothing yet.
  [[nodiscard]] int peer_sees() {
    char byte = 0;
    return static_cast<int>(os::receive(pair_.far_end.get(), &byte, 1).value);
  }

  ScriptedEngine loop_;
  SocketPair pair_ = socket_pair();
  StreamOwner owner_{loop_.engine, std::move(pair_.near_end)};
  int fd_ = owner_.socket->fd();
};

TEST_F(StreamSocketEofTest, EofOfAnIdleSocketIsWrittenAtOnce) {
  EXPECT_EQ(peer_sees(), -1);
  EXPECT_TRUE(owner_.socket->write_eof().ok());
  EXPECT_TRUE(owner_.socket->eof_written());
  EXPECT_EQ(peer_sees(), 0);
  EXPECT_TRUE(owner_.socket->write_eof().ok());
}

TEST_F(StreamSocketEofTest, EofWaitsForWhatIsQueued) {
  loop_.backend->fill(fd_);
  owner_.write("queued");
  EXPECT_TRUE(owner_.socket->write_eof().ok());
  EXPECT_EQ(peer_sees(), -1);
  loop_.backend->make_room(fd_);
  loop_.turn();
  EXPECT_EQ(loop_.backend->sent(fd_), "queued");
  EXPECT_EQ(peer_sees(), 0);
}

TEST_F(StreamSocketEofTest, EofSendsWhatIsGatheredFirst) {
  loop_.in_callback([&] {
    owner_.write("a");
    owner_.write("b");
    EXPECT_TRUE(owner_.socket->write_eof().ok());
    EXPECT_EQ(loop_.backend->sent(fd_), "ab");
    EXPECT_EQ(peer_sees(), 0);
  });
}

TEST_F(StreamSocketEofTest, EofOfAClosingSocketIsNothing) {
  EXPECT_TRUE(owner_.socket->close());
  EXPECT_TRUE(owner_.socket->write_eof().ok());
  EXPECT_FALSE(owner_.socket->eof_written());
  EXPECT_EQ(peer_sees(), -1);
}

TEST_F(StreamSocketEofTest, EofWhosePeerIsGoneReportsTheError) {
  pair_.far_end.reset();
  const IoResult result = owner_.socket->write_eof();
  EXPECT_TRUE(result.ok() || result.error == ENOTCONN);
}

TEST_F(StreamSocketEofTest, CloseAfterEofStillFlushes) {
  loop_.backend->fill(fd_);
  owner_.write("queued");
  (void)owner_.socket->write_eof();
  owner_.close();
  loop_.backend->make_room(fd_);
  loop_.turn();
  EXPECT_EQ(loop_.backend->sent(fd_), "queued");
  EXPECT_EQ(owner_.log, (Lines{"drained", "closed"}));
}

}  // namespace
}  // namespace cpploop

#include "core/net/listener.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Lines;
using testing::ScriptedEngine;
using testing::some_fd;

class ListenerTest : public ::testing::Test, public ListenerEvents {
 protected:
  void hold() noexcept override { ++holds_; }
  void release() noexcept override {
    --holds_;
    if (holds_ == 0 && drop_on_release_) {
      listener_.reset();
    }
  }
  bool on_connection(UniqueFd fd, const os::SocketAddress&) override {
    EXPECT_GT(holds_, 0);
    accepted_.push_back(std::move(fd));
    log_.emplace_back("connection");
    if (on_any_) {
      on_any_();
    }
    return wants_more_;
  }
  void on_exhausted(int error) override {
    log_.push_back("exhausted " + std::to_string(error));
    if (on_any_) {
      on_any_();
    }
  }
  void on_listener_error(int error) override { log_.push_back("error " + std::to_string(error)); }

  void bring_connections(int count) {
    for (int i = 0; i < count; ++i) {
      loop_.backend->bring_connection(fd_.get(), some_fd().release());
    }
  }
  void listen(std::uint16_t batch = 100) {
    listener_.emplace(loop_.engine.backend(), fd_.get(), batch, *this);
  }
  // Connections that nobody accepted hold a real descriptor each.
  ~ListenerTest() override {
    drop_on_release_ = false;
    on_any_ = nullptr;
    wants_more_ = true;
    listener_.reset();
    listen();
    for (int i = 0; i < 5; ++i) {
      loop_.turn();
    }
    listener_.reset();
  }

  ScriptedEngine loop_;
  UniqueFd fd_ = some_fd();
  std::optional<Listener> listener_;
  std::vector<UniqueFd> accepted_;
  Lines log_;
  std::function<void()> on_any_{};
  bool wants_more_ = true;
  bool drop_on_release_ = false;
  int holds_ = 0;
};

TEST_F(ListenerTest, HandsOverWhatItAccepts) {
  listen();
  bring_connections(2);
  loop_.turn();
  ASSERT_EQ(accepted_.size(), 2U);
  EXPECT_TRUE(testing::is_open(accepted_[0].get()));
  EXPECT_NE(accepted_[0].get(), accepted_[1].get());
  EXPECT_EQ(listener_->fd(), fd_.get());
}

TEST_F(ListenerTest, AcceptsNoMoreThanTheBatchInATurn) {
  listen(3);
  bring_connections(7);
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 3U);
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 6U);
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 7U);
}

TEST_F(ListenerTest, AbortedConnectionsAreSteppedOver) {
  listen();
  loop_.backend->fail_accept(fd_.get(), ECONNABORTED);
  bring_connections(1);
  loop_.backend->fail_accept(fd_.get(), ECONNABORTED);
  bring_connections(1);
  loop_.turn();
  EXPECT_EQ(log_, (Lines{"connection", "connection"}));
}

TEST_F(ListenerTest, AbortedConnectionsCountAgainstTheBatch) {
  listen(2);
  loop_.backend->fail_accept(fd_.get(), ECONNABORTED);
  loop_.backend->fail_accept(fd_.get(), ECONNABORTED);
  bring_connections(1);
  loop_.turn();
  EXPECT_TRUE(log_.empty());
  loop_.turn();
  EXPECT_EQ(log_, (Lines{"connection"}));
}

TEST_F(ListenerTest, StopsWhenDescriptorsAreExhaustedAndGoesOnWhenResumed) {
  listen();
  bring_connections(1);
  loop_.backend->fail_accept(fd_.get(), EMFILE);
  bring_connections(1);
  loop_.turn();
  EXPECT_EQ(log_, (Lines{"connection", "exhausted " + std::to_string(EMFILE)}));
  EXPECT_TRUE(listener_->exhausted());
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(log_.size(), 2U) << "reported once, and no spinning";
  loop_.backend->apply_changes();  // Put off while there was nothing to poll for.
  EXPECT_EQ(loop_.backend->told(fd_.get()), 0);
  listener_->resume();
  EXPECT_FALSE(listener_->exhausted());
  loop_.turn();
  EXPECT_EQ(log_.back(), "connection");
}

TEST_F(ListenerTest, EveryKindOfExhaustionStopsIt) {
  listen();
  for (const int error : {EMFILE, ENFILE, ENOBUFS, ENOMEM}) {
    loop_.backend->fail_accept(fd_.get(), error);
    loop_.turn();
    EXPECT_TRUE(listener_->exhausted());
    listener_->resume();
  }
}

TEST_F(ListenerTest, OtherErrorsAreReportedAndAcceptingGoesOn) {
  listen();
  loop_.backend->fail_accept(fd_.get(), EPERM);
  bring_connections(1);
  loop_.turn();
  EXPECT_EQ(log_, (Lines{"error " + std::to_string(EPERM)}));
  loop_.turn();
  EXPECT_EQ(log_.back(), "connection");
}

TEST_F(ListenerTest, ResumeOfAListenerThatIsNotExhaustedIsNothing) {
  listen();
  loop_.turn();
  loop_.backend->clear_log();
  listener_->resume();
  loop_.turn();
  EXPECT_EQ(loop_.backend->log(), (Lines{"wait 0"}));
}

TEST_F(ListenerTest, ResumeAfterStopIsNothing) {
  listen();
  loop_.backend->fail_accept(fd_.get(), EMFILE);
  loop_.turn();
  listener_->stop();
  listener_->resume();
  bring_connections(1);
  loop_.turn();
  EXPECT_EQ(log_.size(), 1U);
}

TEST_F(ListenerTest, OwnerThatHasEnoughEndsTheBatch) {
  listen();
  wants_more_ = false;
  bring_connections(2);
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 1U);
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 2U);
}

TEST_F(ListenerTest, StoppingInsideADeliveryEndsTheBatch) {
  listen();
  on_any_ = [&] { listener_->stop(); };
  bring_connections(2);
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(accepted_.size(), 1U);
}

TEST_F(ListenerTest, StoppingWhenExhaustedIsAllowed) {
  listen();
  on_any_ = [&] { listener_->stop(); };
  loop_.backend->fail_accept(fd_.get(), EMFILE);
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(log_.size(), 1U);
}

TEST_F(ListenerTest, OwnerThatIsDroppedByADeliveryOutlivesIt) {
  listen();
  drop_on_release_ = true;
  bring_connections(1);
  loop_.turn();
  EXPECT_FALSE(listener_.has_value());
  EXPECT_EQ(holds_, 0);
}

}  // namespace
}  // namespace cpploop

#include "core/net/connector.h"

#include <gtest/gtest.h>

#include <optional>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::ScriptedEngine;
using testing::some_fd;

class ConnectorTest : public ::testing::Test, public ConnectSink {
 protected:
  void hold() noexcept override { ++holds_; }
  void release() noexcept override { --holds_; }
  void on_connected(int error) override {
    EXPECT_EQ(holds_, 1);
    outcomes_.push_back(error);
    if (on_outcome_) {
      on_outcome_();
    }
  }
  [[nodiscard]] int start() {
    connector_.emplace(loop_.engine.backend());
    return connector_->start(fd_.get(), os::SocketAddress{}, *this);
  }
  [[nodiscard]] std::size_t attached() { return loop_.engine.backend().attached_count(); }

  ScriptedEngine loop_;
  UniqueFd fd_ = some_fd();
  std::optional<Connector> connector_;
  std::vector<int> outcomes_;
  std::function<void()> on_outcome_{};
  int holds_ = 0;
};

TEST_F(ConnectorTest, OutcomeKnownAtOnceIsReturnedAndNotReportedAgain) {
  for (const int error : {0, ECONNREFUSED}) {
    loop_.backend->answer_connect(fd_.get(), error);
    EXPECT_EQ(start(), error);
    EXPECT_EQ(attached(), 0U);
    loop_.turn();
    EXPECT_TRUE(outcomes_.empty());
  }
}

TEST_F(ConnectorTest, OutcomeThatComesLaterIsReportedOnce) {
  for (const int error : {0, ETIMEDOUT}) {
    outcomes_.clear();
    EXPECT_EQ(start(), EINPROGRESS);
    loop_.turn();
    EXPECT_TRUE(outcomes_.empty());
    loop_.backend->finish_connect_with(fd_.get(), error);
    loop_.turn();
    EXPECT_EQ(outcomes_, (std::vector<int>{error}));
    loop_.turn();
    EXPECT_EQ(outcomes_.size(), 1U);
    loop_.backend->apply_changes();  // Put off while there was nothing to poll for.
    EXPECT_EQ(loop_.backend->told(fd_.get()), 0);
    connector_.reset();
    loop_.backend->reuse_number(fd_.get());
  }
}

TEST_F(ConnectorTest, NothingIsReportedAfterCancel) {
  EXPECT_EQ(start(), EINPROGRESS);
  loop_.turn();
  loop_.backend->finish_connect_with(fd_.get(), 0);
  loop_.call_soon([&] { connector_->cancel(); });
  loop_.turn();
  EXPECT_TRUE(outcomes_.empty());
  EXPECT_EQ(attached(), 0U);
  EXPECT_TRUE(testing::is_open(fd_.get())) << "the descriptor stays the caller's";
}

TEST_F(ConnectorTest, MayBeDestroyedByWhatItReports) {
  EXPECT_EQ(start(), EINPROGRESS);
  loop_.backend->finish_connect_with(fd_.get(), 0);
  on_outcome_ = [&] { connector_.reset(); };
  loop_.turn();
  EXPECT_EQ(outcomes_.size(), 1U);
  EXPECT_EQ(holds_, 0);
}

TEST_F(ConnectorTest, MayBeStartedAgainByWhatItReports) {
  EXPECT_EQ(start(), EINPROGRESS);
  loop_.backend->finish_connect_with(fd_.get(), ECONNREFUSED);
  on_outcome_ = [&] {
    on_outcome_ = nullptr;
    connector_->cancel();
    EXPECT_EQ(connector_->start(fd_.get(), os::SocketAddress{}, *this), EINPROGRESS);
  };
  loop_.turn();
  EXPECT_EQ(outcomes_.size(), 1U);
  loop_.turn();
  EXPECT_EQ(outcomes_.size(), 2U);
}

TEST_F(ConnectorTest, DescriptorThatCannotBeWatchedIsAnErrorAtOnce) {
  loop_.backend->refuse(fd_.get(), ENOSPC);
  EXPECT_EQ(start(), ENOSPC);
  EXPECT_EQ(attached(), 0U);
}

TEST_F(ConnectorTest, CancelBeforeStartAndTwiceIsHarmless) {
  Connector connector(loop_.engine.backend());
  connector.cancel();
  connector.cancel();
}

}  // namespace
}  // namespace cpploop

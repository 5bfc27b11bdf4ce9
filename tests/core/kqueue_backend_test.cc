#include "core/backend/kqueue_backend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

#include "core/os/wakeup.h"
#include "tests/core/support.h"

// What is kqueue's own; what all backends promise is in backend_test.cc.
namespace cpploop {
namespace {

class Watcher final : public ReadinessSink {
 public:
  void hold() noexcept override {}
  void release() noexcept override {}
  void on_readable() override { ++readable; }
  void on_writable() override { ++writable; }

  int readable = 0;
  int writable = 0;
};

class KqueueBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    backend_.attach(channel_, pair_.near_end.get(), Channel::Kind::readiness,
                    static_cast<ReadinessSink*>(&watcher_));
  }
  void TearDown() override { backend_.detach(channel_); }

  // The events of one poll, which are run.
  std::size_t turn() {
    ReadyQueue ready;
    EXPECT_TRUE(backend_.wait(0).ok());
    backend_.collect(ready);
    const std::size_t count = ready.size();
    while (!ready.empty()) {
      const ReadyEntry entry = ready.pop();
      backend_.dispatch(entry.channel, entry.io_events);
    }
    return count;
  }

  os::Wakeup wakeup_;
  KqueueBackend backend_{wakeup_.fd()};
  testing::SocketPair pair_ = testing::socket_pair();
  Watcher watcher_;
  Channel channel_;
};

TEST_F(KqueueBackendTest, BothDirectionsOfAChannelAreOneEvent) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  ASSERT_EQ(backend_.watch(channel_, kWantWritable), 0);
  ASSERT_EQ(::send(pair_.far_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(watcher_.readable, 1);
  EXPECT_EQ(watcher_.writable, 1);
}

TEST_F(KqueueBackendTest, WatchingAgainTellsNothingTwice) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  }
  ASSERT_EQ(::send(pair_.far_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(turn(), 1U);
  backend_.unwatch(channel_, kWantReadable);
  EXPECT_EQ(turn(), 0U);
}

TEST_F(KqueueBackendTest, AnEndWakesEachDirectionThatIsWatched) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  ASSERT_EQ(backend_.watch(channel_, kWantWritable), 0);
  pair_.far_end.reset();
  (void)turn();
  EXPECT_EQ(watcher_.readable, 1);
  EXPECT_EQ(watcher_.writable, 1);
}

TEST_F(KqueueBackendTest, ANumberClosedWhileItWasWatchedServesTheNextChannel) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  ASSERT_EQ(backend_.watch(channel_, kWantWritable), 0);
  const int number = pair_.near_end.get();
  pair_.near_end.reset();  // Behind the backend's back.
  testing::SocketPair next = testing::socket_pair();
  ASSERT_EQ(next.near_end.get(), number);
  Channel other;
  backend_.attach(other, number, Channel::Kind::datagram, static_cast<ReadinessSink*>(&watcher_));
  backend_.want_send_ready(other);
  backend_.apply_changes();
  EXPECT_EQ(other.registered, kWantWritable) << "the kernel took it";
  backend_.detach(other);
}

// The kernel closes a queue in a forked child, where its number may be another file's by then.
TEST_F(KqueueBackendTest, AForkedChildClosesNothingInTheQueuesPlace) {
  auto queue = std::make_unique<KqueueBackend>(wakeup_.fd());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int highest = 0;
    for (int i = 0; i < 64; ++i) {
      highest = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    queue->abandon_after_fork();
    queue.reset();
    for (int fd = 0; fd <= highest; ++fd) {
      if (!testing::is_open(fd) && fd > STDERR_FILENO) {
        ::_exit(1);
      }
    }
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(KqueueBackendTest, AParentsQueueGoesOnAfterAFork) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ASSERT_EQ(::send(pair_.far_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(turn(), 1U);
}

}  // namespace
}  // namespace cpploop

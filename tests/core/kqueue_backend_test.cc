#include "core/backend/kqueue_backend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
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

// A child that lives until end() is called.
class Child {
 public:
  Child() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    UniqueFd reading(fds[0]);
    life_.reset(fds[1]);
    number_ = ::fork();
    EXPECT_GE(number_, 0);
    if (number_ == 0) {
      life_.reset();
      char byte = 0;
      ::_exit(::read(reading.get(), &byte, 1) == 0 ? 0 : 1);
    }
  }
  ~Child() {
    life_.reset();
    (void)::waitpid(number_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] pid_t number() const { return number_; }
  void end() {
    life_.reset();
    siginfo_t info{};
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(number_), &info, WEXITED | WNOWAIT), 0);
  }
  void reap() { EXPECT_EQ(::waitpid(number_, nullptr, 0), number_); }

 private:
  UniqueFd life_;
  pid_t number_ = -1;
};

class KqueueProcessTest : public KqueueBackendTest {
 protected:
  void SetUp() override {
    backend_.attach(channel_, child_.number(), Channel::Kind::process,
                    static_cast<ReadinessSink*>(&watcher_));
  }

  Child child_;
};

TEST_F(KqueueProcessTest, TheEndOfAChildIsToldOnce) {
  ASSERT_TRUE(backend_.watches_processes());
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  EXPECT_TRUE(backend_.has_channels());
  EXPECT_EQ(turn(), 0U);
  child_.end();
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(watcher_.readable, 1);
  EXPECT_EQ(turn(), 0U);
  child_.reap();
}

TEST_F(KqueueProcessTest, AnEndBeforeTheWatchIsToldOrRefused) {
  child_.end();
  // macOS refuses one that has ended; then nothing must be told.
  const int error = backend_.watch(channel_, kWantReadable);
  EXPECT_TRUE(error == 0 || error == ESRCH) << error;
  EXPECT_EQ(turn(), error == 0 ? 1U : 0U);
}

TEST_F(KqueueProcessTest, AnEndWhoseStatusIsTakenIsToldAllTheSame) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  child_.end();
  child_.reap();
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(watcher_.readable, 1);
}

TEST_F(KqueueProcessTest, OneThatIsGoneIsRefused) {
  child_.end();
  child_.reap();
  EXPECT_EQ(backend_.watch(channel_, kWantReadable), ESRCH);
  EXPECT_FALSE(backend_.has_channels());
}

TEST_F(KqueueProcessTest, NothingIsToldOfOneThatIsNotWatchedAnyMore) {
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  backend_.detach(channel_);
  child_.end();
  EXPECT_EQ(turn(), 0U);
}

// Its number is no descriptor's: what is watched under that is another thing.
TEST_F(KqueueProcessTest, ADescriptorOfTheSameNumberIsToldApart) {
  const UniqueFd same(::fcntl(pair_.near_end.get(), F_DUPFD_CLOEXEC, child_.number()));
  if (same.get() != child_.number()) {
    GTEST_SKIP() << "no descriptor may have the number " << child_.number();
  }
  Watcher other_watcher;
  Channel other;
  backend_.attach(other, same.get(), Channel::Kind::readiness,
                  static_cast<ReadinessSink*>(&other_watcher));
  ASSERT_EQ(backend_.watch(other, kWantReadable), 0);
  ASSERT_EQ(backend_.watch(channel_, kWantReadable), 0);
  ASSERT_EQ(::send(pair_.far_end.get(), "x", 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(other_watcher.readable, 1);
  EXPECT_EQ(watcher_.readable, 0);
  backend_.detach(other);
  child_.end();
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(watcher_.readable, 1);
}

}  // namespace
}  // namespace cpploop

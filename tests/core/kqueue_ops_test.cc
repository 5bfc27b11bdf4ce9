#include "core/os/kqueue_ops.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>

#include "core/os/clock.h"
#include "core/os/unique_fd.h"
#include "core/os/wakeup.h"
#include "tests/core/signal_storm.h"

namespace cpploop {
namespace {

using testing::SignalStorm;

class KqueueOps : public ::testing::Test {
 protected:
  [[nodiscard]] IoResult wait_for(std::int64_t timeout_ns) {
    return os::kqueue_wait(queue_.get(), events_, timeout_ns);
  }
  [[nodiscard]] int change(int fd, std::uint16_t flags) {
    struct kevent change{};
    change.ident = static_cast<std::uintptr_t>(fd);
    change.filter = EVFILT_READ;
    change.flags = flags;
    return os::kqueue_change(queue_.get(), change);
  }

  UniqueFd queue_{static_cast<int>(os::kqueue_create().value)};
  std::array<struct kevent, 4> events_{};
};

TEST_F(KqueueOps, TheQueueIsCloseOnExec) {
  EXPECT_NE(::fcntl(queue_.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(KqueueOps, WaitIsNeverShorterThanAsked) {
  for (const std::int64_t timeout_ns : {1LL, 999'999LL, 1'000'001LL, 3'500'000LL}) {
    const std::int64_t start = monotonic_now_ns();
    EXPECT_EQ(wait_for(timeout_ns).value, 0);
    EXPECT_GE(monotonic_now_ns() - start, timeout_ns);
  }
  EXPECT_EQ(wait_for(0).value, 0);
}

TEST_F(KqueueOps, WaitReportsAnInterruptionInsteadOfRetrying) {
  const SignalStorm storm;
  EXPECT_EQ(wait_for(30 * kNanosecondsPerSecond).error, EINTR);
  EXPECT_EQ(wait_for(-1).error, EINTR);
}

TEST_F(KqueueOps, ReportsWhatIsReadyWhileItIs) {
  os::Wakeup wakeup;
  ASSERT_EQ(change(wakeup.fd(), EV_ADD), 0);
  wakeup.signal();
  EXPECT_EQ(wait_for(-1).value, 1);
  EXPECT_EQ(events_[0].ident, static_cast<std::uintptr_t>(wakeup.fd()));
  EXPECT_EQ(wait_for(0).value, 1);
  ASSERT_EQ(change(wakeup.fd(), EV_DELETE), 0);
  EXPECT_EQ(wait_for(0).value, 0);
}

TEST_F(KqueueOps, ARefusedChangeIsAnErrno) {
  EXPECT_NE(change(-1, EV_ADD), 0);
  EXPECT_EQ(change(0, EV_DELETE), ENOENT);
}

}  // namespace
}  // namespace cpploop

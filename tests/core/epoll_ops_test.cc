#include "core/os/epoll_ops.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "core/os/clock.h"
#include "core/os/wakeup.h"
#include "tests/core/signal_storm.h"

namespace cpploop {
namespace {

using testing::SignalStorm;

class ForcedPrecision {
 public:
  explicit ForcedPrecision(os::WaitPrecision precision) : before_(os::wait_precision()) {
    os::force_wait_precision(precision);
  }
  ~ForcedPrecision() { os::force_wait_precision(before_); }
  ForcedPrecision(const ForcedPrecision&) = delete;
  ForcedPrecision& operator=(const ForcedPrecision&) = delete;

 private:
  os::WaitPrecision before_;
};

[[nodiscard]] UniqueFd new_epoll() { return UniqueFd(static_cast<int>(os::epoll_create().value)); }

TEST(EpollOps, RefusesARegularFile) {
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const UniqueFd epoll = new_epoll();
  EXPECT_EQ(os::epoll_add(epoll.get(), file.get(), EPOLLIN, 0), EPERM);
}

// The wait with a time-out, in both of its forms.
class TimedWait : public ::testing::TestWithParam<os::WaitPrecision> {
 protected:
  [[nodiscard]] static IoResult wait_for(std::int64_t timeout_ns) {
    const UniqueFd epoll = new_epoll();
    epoll_event event{};
    return os::epoll_wait(epoll.get(), &event, 1, timeout_ns);
  }

  ForcedPrecision forced_{GetParam()};
};

TEST_P(TimedWait, IsNeverShorterThanAsked) {
  for (const std::int64_t timeout_ns : {1LL, 999'999LL, 1'000'001LL, 3'500'000LL}) {
    const std::int64_t start = monotonic_now_ns();
    const IoResult result = wait_for(timeout_ns);
    EXPECT_TRUE(result.ok());
    EXPECT_EQ(result.value, 0);
    EXPECT_GE(monotonic_now_ns() - start, timeout_ns);
  }
}

TEST_P(TimedWait, OfZeroOnlyLooks) { EXPECT_TRUE(wait_for(0).ok()); }

TEST_P(TimedWait, ReportsAnInterruptionInsteadOfRetrying) {
  const SignalStorm storm;
  EXPECT_EQ(wait_for(30 * kNanosecondsPerSecond).error, EINTR);
}

TEST_P(TimedWait, WithoutEndReportsAnInterruptionToo) {
  const SignalStorm storm;
  EXPECT_EQ(wait_for(-1).error, EINTR);
}

TEST_P(TimedWait, EndsWhenADescriptorIsReady) {
  const UniqueFd epoll = new_epoll();
  os::Wakeup wakeup;
  ASSERT_EQ(os::epoll_add(epoll.get(), wakeup.fd(), EPOLLIN, 42), 0);
  wakeup.signal();
  epoll_event event{};
  EXPECT_EQ(os::epoll_wait(epoll.get(), &event, 1, INT64_MAX).value, 1);
  EXPECT_EQ(event.data.u64, 42U);
}

TEST_P(TimedWait, KeepsTheFormThatWasForced) {
  (void)wait_for(1);
  if (GetParam() == os::WaitPrecision::milliseconds) {
    EXPECT_EQ(os::wait_precision(), os::WaitPrecision::milliseconds);
  }
}

INSTANTIATE_TEST_SUITE_P(Precision, TimedWait,
                         ::testing::Values(os::WaitPrecision::nanoseconds,
                                           os::WaitPrecision::milliseconds),
                         [](const auto& param_info) {
                           return param_info.param == os::WaitPrecision::nanoseconds
                                      ? "Nanoseconds"
                                      : "Milliseconds";
                         });

}  // namespace
}  // namespace cpploop

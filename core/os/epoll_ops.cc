#include "core/os/epoll_ops.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <ctime>

#include "core/os/clock.h"
#include "core/os/kernel.h"
#include "core/os/retry.h"

namespace cpploop::os {
namespace {

constexpr std::int64_t kNanosecondsPerMillisecond = 1'000'000;

// epoll_pwait2 came with Linux 5.11. A container's filter may refuse it with EPERM, which counts as
// not there. One process has one kernel, so the answer is kept for the process.
std::atomic<WaitPrecision> g_wait_precision{WaitPrecision::nanoseconds};

[[nodiscard]] int epoll_change(int epoll, int operation, int fd, std::uint32_t events,
                               std::uint64_t data) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
  return kernel::epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

[[nodiscard]] IoResult epoll_wait_nanoseconds(int epoll, epoll_event* events, int capacity,
                                              std::int64_t timeout_ns) noexcept {
  std::timespec timeout{};
  timeout.tv_sec = timeout_ns / kNanosecondsPerSecond;
  timeout.tv_nsec = timeout_ns % kNanosecondsPerSecond;
  return once([&] { return kernel::epoll_pwait2(epoll, events, capacity, &timeout); });
}

}  // namespace

IoResult epoll_create() noexcept {
  return once([] { return kernel::epoll_create1(EPOLL_CLOEXEC); });
}

int epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  return epoll_change(epoll, EPOLL_CTL_ADD, fd, events, data);
}

int epoll_modify(int epoll, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  return epoll_change(epoll, EPOLL_CTL_MOD, fd, events, data);
}

int epoll_remove(int epoll, int fd) noexcept {
  return epoll_change(epoll, EPOLL_CTL_DEL, fd, 0, 0);
}

IoResult epoll_wait(int epoll, epoll_event* events, int capacity,
                    std::int64_t timeout_ns) noexcept {
  if (timeout_ns <= 0) {
    const int timeout = timeout_ns == 0 ? 0 : -1;
    return once([&] { return kernel::epoll_wait(epoll, events, capacity, timeout); });
  }
  if (wait_precision() == WaitPrecision::nanoseconds) {
    const IoResult result = epoll_wait_nanoseconds(epoll, events, capacity, timeout_ns);
    if (result.error != ENOSYS && result.error != EPERM) {
      return result;
    }
    force_wait_precision(WaitPrecision::milliseconds);
  }
  // Rounded up, so that a timer never finds the wait over before it is due.
  const std::int64_t timeout_ms =
      timeout_ns / kNanosecondsPerMillisecond + (timeout_ns % kNanosecondsPerMillisecond != 0);
  const int clamped = static_cast<int>(std::min<std::int64_t>(timeout_ms, INT_MAX));
  return once([&] { return kernel::epoll_wait(epoll, events, capacity, clamped); });
}

WaitPrecision wait_precision() noexcept { return g_wait_precision.load(std::memory_order_relaxed); }

void force_wait_precision(WaitPrecision precision) noexcept {
  g_wait_precision.store(precision, std::memory_order_relaxed);
}

}  // namespace cpploop::os

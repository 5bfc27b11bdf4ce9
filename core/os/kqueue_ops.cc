#include "core/os/platform.h"

#if CPPLOOP_HAVE_KQUEUE

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "core/os/clock.h"
#include "core/os/kernel.h"
#include "core/os/kqueue_ops.h"
#include "core/os/retry.h"

namespace cpploop::os {

IoResult kqueue_create() noexcept {
  const IoResult result = once([] { return kernel::kqueue(); });
  if (result.ok()) {
    (void)::fcntl(static_cast<int>(result.value), F_SETFD, FD_CLOEXEC);
  }
  return result;
}

int kqueue_change(int queue, const struct kevent& change) noexcept {
  errno = 0;
  if (kernel::kevent(queue, &change, 1, nullptr, 0, nullptr) == 0) {
    return 0;
  }
  return errno != 0 ? errno : EINVAL;
}

IoResult kqueue_wait(int queue, std::span<struct kevent> events, std::int64_t timeout_ns) noexcept {
  std::timespec timeout{};
  if (timeout_ns > 0) {
    timeout.tv_sec = timeout_ns / kNanosecondsPerSecond;
    timeout.tv_nsec = timeout_ns % kNanosecondsPerSecond;
  }
  return once([&] {
    return kernel::kevent(queue, nullptr, 0, events.data(), static_cast<int>(events.size()),
                          timeout_ns < 0 ? nullptr : &timeout);
  });
}

}  // namespace cpploop::os

#endif

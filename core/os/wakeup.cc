#include "core/os/wakeup.h"

#include <unistd.h>

#include <cstdint>
#include <system_error>

#include "core/os/kernel.h"
#include "core/os/retry.h"

namespace cpploop::os {

#if CPPLOOP_HAVE_EVENTFD

Wakeup::Wakeup() {
  const IoResult result = once([] { return kernel::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); });
  if (!result.ok()) {
    throw std::system_error(result.error, std::generic_category(), "eventfd");
  }
  reading_.reset(static_cast<int>(result.value));
}

void Wakeup::signal() noexcept { signal(reading_.get()); }

void Wakeup::signal(int eventfd) noexcept {
  const std::uint64_t one = 1;
  (void)retry_on_interrupt([&] { return ::write(eventfd, &one, sizeof(one)); });
}

void Wakeup::drain() noexcept {
  std::uint64_t count = 0;
  (void)retry_on_interrupt([&] { return ::read(reading_.get(), &count, sizeof(count)); });
}

void Wakeup::close() noexcept { reading_.reset(); }

#else

Wakeup::Wakeup() {
  int fds[2] = {-1, -1};
  if (const IoResult result = once([&] { return ::pipe(fds); }); !result.ok()) {
    throw std::system_error(result.error, std::generic_category(), "pipe");
  }
  reading_.reset(fds[0]);
  writing_.reset(fds[1]);
  for (const int fd : fds) {
    (void)::fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)::fcntl(fd, F_SETFL, O_NONBLOCK);
  }
}

void Wakeup::signal() noexcept {
  const char one = 1;
  (void)retry_on_interrupt([&] { return ::write(writing_.get(), &one, sizeof(one)); });
}

void Wakeup::drain() noexcept {
  // Each wait is signalled once, so that one read is the rule.
  char bytes[64];
  while (retry_on_interrupt([&] { return ::read(reading_.get(), bytes, sizeof(bytes)); }).value ==
         static_cast<std::int64_t>(sizeof(bytes))) {
  }
}

void Wakeup::close() noexcept {
  reading_.reset();
  writing_.reset();
}

#endif

}  // namespace cpploop::os

#pragma once

#include <sys/event.h>

#include <cstdint>
#include <span>

#include "core/os/io_result.h"

// kqueue's system calls, each wrapped once as in socket_ops.
namespace cpploop::os {

// The new descriptor is close-on-exec. A forked child does not have it: the kernel closes it there.
[[nodiscard]] IoResult kqueue_create() noexcept;
// One change; 0 or an errno. Never waits and takes no events.
[[nodiscard]] int kqueue_change(int queue, const struct kevent& change) noexcept;
// timeout_ns < 0 waits for ever. EINTR is reported, not retried: the caller has signals to look at.
[[nodiscard]] IoResult kqueue_wait(int queue, std::span<struct kevent> events,
                                   std::int64_t timeout_ns) noexcept;

}  // namespace cpploop::os

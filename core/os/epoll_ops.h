#pragma once

#include <sys/epoll.h>

#include <cstdint>

#include "core/os/io_result.h"

// epoll's system calls, each wrapped once as in socket_ops.
namespace cpploop::os {

[[nodiscard]] IoResult epoll_create() noexcept;
[[nodiscard]] int epoll_add(int epoll, int fd, std::uint32_t events, std::uint64_t data) noexcept;
[[nodiscard]] int epoll_modify(int epoll, int fd, std::uint32_t events,
                               std::uint64_t data) noexcept;
[[nodiscard]] int epoll_remove(int epoll, int fd) noexcept;
// timeout_ns < 0 waits for ever. EINTR is reported, not retried: the caller has signals to look at.
[[nodiscard]] IoResult epoll_wait(int epoll, epoll_event* events, int capacity,
                                  std::int64_t timeout_ns) noexcept;

// Which form of the timed wait is in use; tests force the fallback.
enum class WaitPrecision { nanoseconds, milliseconds };
[[nodiscard]] WaitPrecision wait_precision() noexcept;
void force_wait_precision(WaitPrecision precision) noexcept;

}  // namespace cpploop::os

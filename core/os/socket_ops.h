#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "core/os/io_result.h"
#include "core/os/platform.h"
#include "core/os/unique_fd.h"

// Every system call of the engine, wrapped once: EINTR is retried where a retry is right, flags
// that must never be forgotten (MSG_NOSIGNAL, CLOEXEC, NONBLOCK) are set here, and the errno is
// taken before anything else can change it.
namespace cpploop::os {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  [[nodiscard]] const sockaddr* get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&storage);
  }
  [[nodiscard]] sockaddr* get() noexcept { return reinterpret_cast<sockaddr*>(&storage); }
  [[nodiscard]] int family() const noexcept { return length == 0 ? AF_UNSPEC : storage.ss_family; }
  // An IPv4 or IPv6 address of this machine alone.
  [[nodiscard]] bool is_loopback() const noexcept;
};

void close_fd(int fd) noexcept;
[[nodiscard]] bool is_open(int fd) noexcept;

[[nodiscard]] IoResult receive(int fd, void* buffer, std::size_t size) noexcept;
[[nodiscard]] IoResult send(int fd, const void* data, std::size_t size) noexcept;
[[nodiscard]] IoResult send_vector(int fd, const iovec* parts, std::size_t count) noexcept;
// For descriptors that others may have made blocking again: these two never wait. `from` may be
// null.
[[nodiscard]] IoResult receive_now(int fd, void* buffer, std::size_t size,
                                   SocketAddress* from) noexcept;
[[nodiscard]] IoResult send_now(int fd, const void* data, std::size_t size) noexcept;
[[nodiscard]] bool is_non_blocking(int fd) noexcept;
// Datagrams. `to` is null on a socket that is connected.
[[nodiscard]] IoResult send_datagram(int fd, const void* data, std::size_t size,
                                     const SocketAddress* to) noexcept;
[[nodiscard]] IoResult receive_from(int fd, void* buffer, std::size_t size,
                                    SocketAddress& from) noexcept;
#if CPPLOOP_HAVE_RECVMMSG
// ENOSYS and EPERM: this kernel, or what fences it, has no such call.
[[nodiscard]] IoResult receive_messages(int fd, mmsghdr* messages, unsigned count) noexcept;
#endif
[[nodiscard]] IoResult shutdown_write(int fd) noexcept;
void shutdown_both(int fd) noexcept;

// The new descriptor is non-blocking and close-on-exec; `value` is its number.
[[nodiscard]] IoResult accept(int fd, SocketAddress& peer) noexcept;
[[nodiscard]] IoResult connect(int fd, const SocketAddress& address) noexcept;
// Whether a connect() that was under way has succeeded by now.
[[nodiscard]] bool is_connected(int fd) noexcept;
// The pending error of a socket (SO_ERROR), 0 if there is none.
[[nodiscard]] int pending_error(int fd) noexcept;
[[nodiscard]] IoResult local_address(int fd, SocketAddress& address) noexcept;
[[nodiscard]] IoResult peer_address(int fd, SocketAddress& address) noexcept;
void set_no_delay(int fd) noexcept;
// A socket that becomes ours: sending on it never raises SIGPIPE from here on, where each single
// send cannot say so.
#if CPPLOOP_HAVE_MSG_NOSIGNAL
inline void set_no_sigpipe(int /*fd*/) noexcept {}
#else
void set_no_sigpipe(int fd) noexcept;
#endif

}  // namespace cpploop::os

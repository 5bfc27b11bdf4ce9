#include "core/os/socket_ops.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <span>

#include "core/os/kernel.h"
#include "core/os/retry.h"

namespace cpploop::os {
namespace {

#if CPPLOOP_HAVE_MSG_NOSIGNAL
constexpr int kNoSignal = MSG_NOSIGNAL;
#else
constexpr int kNoSignal = 0;  // set_no_sigpipe() has seen to it.
#endif

#if CPPLOOP_HAVE_ACCEPT4
// It can be missing behind a filter that is older than it. One process has one kernel, so the
// answer is kept for the process.
std::atomic<bool> g_has_accept4{true};
#endif

[[nodiscard]] bool fit_together(std::span<const iovec> parts, std::size_t room) noexcept {
  for (const iovec& part : parts) {
    if (part.iov_len > room) {
      return false;
    }
    room -= part.iov_len;
  }
  return true;
}

// A child that another thread makes in between inherits the descriptor: without accept4 there is no
// way to prevent that.
[[nodiscard]] IoResult accept_plainly(int fd, SocketAddress& peer) noexcept {
  const IoResult result = retry_on_interrupt([&] {
    peer.length = sizeof(peer.storage);
    return kernel::accept(fd, peer.get(), &peer.length);
  });
  if (result.ok()) {
    const int accepted = static_cast<int>(result.value);
    (void)::fcntl(accepted, F_SETFD, FD_CLOEXEC);
    (void)::fcntl(accepted, F_SETFL, O_RDWR | O_NONBLOCK);
  }
  return result;
}

}  // namespace

bool SocketAddress::is_loopback() const noexcept {
  if (family() == AF_INET) {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(storage);
    return ntohl(ipv4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  return family() == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr);
}

void close_fd(int fd) noexcept {
  const int saved = errno;
  ::close(fd);
  errno = saved;
}

bool is_open(int fd) noexcept { return ::fcntl(fd, F_GETFD) != -1; }

IoResult receive(int fd, void* buffer, std::size_t size) noexcept {
  return retry_on_interrupt([&] { return kernel::recv(fd, buffer, size, 0); });
}

IoResult send(int fd, const void* data, std::size_t size) noexcept {
  return retry_on_interrupt([&] { return kernel::send(fd, data, size, kNoSignal); });
}

// The kernel takes 0.2 µs longer for a list of two parts than for one (of 4.3 µs, for a response's
// head and body over loopback), and copying a few KiB takes less.
IoResult send_vector(int fd, const iovec* parts, std::size_t count) noexcept {
  std::array<char, 4096> joined;  // Filled only as far as it is used.
  if (fit_together({parts, count}, joined.size())) {
    std::size_t size = 0;
    for (const iovec& part : std::span(parts, count)) {
      std::memcpy(joined.data() + size, part.iov_base, part.iov_len);
      size += part.iov_len;
    }
    return send(fd, joined.data(), size);
  }
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);  // sendmsg() does not write through it.
  message.msg_iovlen = std::min<std::size_t>(count, IOV_MAX);
  return retry_on_interrupt([&] { return kernel::sendmsg(fd, &message, kNoSignal); });
}

IoResult receive_now(int fd, void* buffer, std::size_t size, SocketAddress* from) noexcept {
  return retry_on_interrupt([&] {
    if (from == nullptr) {
      return kernel::recv(fd, buffer, size, MSG_DONTWAIT);
    }
    // A kernel that has no address to give (a connected stream) sets the length to 0.
    from->length = sizeof(from->storage);
    return kernel::recvfrom(fd, buffer, size, MSG_DONTWAIT, from->get(), &from->length);
  });
}

IoResult send_now(int fd, const void* data, std::size_t size) noexcept {
  return retry_on_interrupt([&] { return kernel::send(fd, data, size, kNoSignal | MSG_DONTWAIT); });
}

bool is_non_blocking(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags != -1 && (flags & O_NONBLOCK) != 0;
}

IoResult send_datagram(int fd, const void* data, std::size_t size,
                       const SocketAddress* to) noexcept {
  const sockaddr* name = to == nullptr ? nullptr : to->get();
  const socklen_t length = to == nullptr ? 0 : to->length;
  return retry_on_interrupt(
      [&] { return kernel::sendto(fd, data, size, kNoSignal | MSG_DONTWAIT, name, length); });
}

IoResult receive_from(int fd, void* buffer, std::size_t size, SocketAddress& from) noexcept {
  return retry_on_interrupt([&] {
    from.length = sizeof(from.storage);
    return kernel::recvfrom(fd, buffer, size, MSG_DONTWAIT, from.get(), &from.length);
  });
}

#if CPPLOOP_HAVE_RECVMMSG
IoResult receive_messages(int fd, mmsghdr* messages, unsigned count) noexcept {
  return retry_on_interrupt(
      [&] { return kernel::recvmmsg(fd, messages, count, MSG_DONTWAIT, nullptr); });
}
#endif

IoResult shutdown_write(int fd) noexcept {
  return once([&] { return ::shutdown(fd, SHUT_WR); });
}

void shutdown_both(int fd) noexcept { (void)::shutdown(fd, SHUT_RDWR); }

IoResult accept(int fd, SocketAddress& peer) noexcept {
#if CPPLOOP_HAVE_ACCEPT4
  if (g_has_accept4.load(std::memory_order_relaxed)) {
    const IoResult result = retry_on_interrupt([&] {
      peer.length = sizeof(peer.storage);
      return kernel::accept4(fd, peer.get(), &peer.length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    });
    if (result.error != ENOSYS && result.error != EPERM) {
      return result;
    }
    // EPERM may also be a firewall's word on this one connection, so it is not kept.
    g_has_accept4.store(result.error == EPERM, std::memory_order_relaxed);
  }
#endif
  return accept_plainly(fd, peer);
}

IoResult connect(int fd, const SocketAddress& address) noexcept {
  // An interrupted connect() goes on in the kernel: it counts as in progress, never as a retry.
  IoResult result = once([&] { return kernel::connect(fd, address.get(), address.length); });
  if (result.error == EINTR) {
    result.error = EINPROGRESS;
  }
  return result;
}

bool is_connected(int fd) noexcept {
  pollfd looked_at{fd, POLLOUT, 0};
  return ::poll(&looked_at, 1, 0) == 1 && looked_at.revents == POLLOUT;
}

int pending_error(int fd) noexcept {
  int error = 0;
  socklen_t size = sizeof(error);
  return ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

IoResult local_address(int fd, SocketAddress& address) noexcept {
  address.length = sizeof(address.storage);
  return once([&] { return ::getsockname(fd, address.get(), &address.length); });
}

IoResult peer_address(int fd, SocketAddress& address) noexcept {
  address.length = sizeof(address.storage);
  return once([&] { return ::getpeername(fd, address.get(), &address.length); });
}

void set_no_delay(int fd) noexcept {
  // Fails harmlessly on sockets that are not TCP.
  const int one = 1;
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

#if !CPPLOOP_HAVE_MSG_NOSIGNAL
void set_no_sigpipe(int fd) noexcept {
  const int one = 1;
  (void)::setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof(one));
}
#endif

}  // namespace cpploop::os

#include "core/os/socket_ops.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

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

// accept4 can be missing as well, behind a filter that is older than it.
std::atomic<bool> g_has_accept4{true};

template <typename Call>
[[nodiscard]] IoResult once(Call call) noexcept {
  const auto value = call();
  return value >= 0 ? IoResult::success(static_cast<std::int64_t>(value))
                    : IoResult::failure(errno);
}

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
  return retry_on_interrupt([&] { return kernel::send(fd, data, size, MSG_NOSIGNAL); });
}

IoResult send_vector(int fd, const iovec* parts, std::size_t count) noexcept {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);  // sendmsg() does not write through it.
  message.msg_iovlen = std::min<std::size_t>(count, IOV_MAX);
  return retry_on_interrupt([&] { return kernel::sendmsg(fd, &message, MSG_NOSIGNAL); });
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
  return retry_on_interrupt(
      [&] { return kernel::send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT); });
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
      [&] { return kernel::sendto(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT, name, length); });
}

IoResult receive_from(int fd, void* buffer, std::size_t size, SocketAddress& from) noexcept {
  return retry_on_interrupt([&] {
    from.length = sizeof(from.storage);
    return kernel::recvfrom(fd, buffer, size, MSG_DONTWAIT, from.get(), &from.length);
  });
}

IoResult receive_messages(int fd, mmsghdr* messages, unsigned count) noexcept {
  return retry_on_interrupt(
      [&] { return kernel::recvmmsg(fd, messages, count, MSG_DONTWAIT, nullptr); });
}

IoResult shutdown_write(int fd) noexcept {
  return once([&] { return ::shutdown(fd, SHUT_WR); });
}

void shutdown_both(int fd) noexcept { (void)::shutdown(fd, SHUT_RDWR); }

IoResult accept(int fd, SocketAddress& peer) noexcept {
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

IoResult event_fd() noexcept {
  return once([] { return kernel::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); });
}

IoResult event_fd_signal(int fd) noexcept {
  const std::uint64_t one = 1;
  return retry_on_interrupt([&] { return ::write(fd, &one, sizeof(one)); });
}

void event_fd_drain(int fd) noexcept {
  std::uint64_t count = 0;
  (void)retry_on_interrupt([&] { return ::read(fd, &count, sizeof(count)); });
}

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

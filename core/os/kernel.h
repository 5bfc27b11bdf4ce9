#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "core/os/platform.h"

#if CPPLOOP_ON_LINUX
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#else
#include <sys/event.h>
#endif

#if defined(CPPLOOP_FAULTS) && !CPPLOOP_ON_LINUX
#error "faults are injected into the calls of a build for Linux"
#endif

// The system calls that the wrappers beside this file make. They are the C library's own; in a
// build with CPPLOOP_FAULTS others of the same form stand here, which fail or fall short at random
// (faults.h) and else do the same.
namespace cpploop::os::kernel {

#if CPPLOOP_ON_LINUX
// The C library has it since 2.35 only.
[[nodiscard]] inline long plain_epoll_pwait2(int epoll, epoll_event* events, int capacity,
                                             const std::timespec* timeout) noexcept {
#ifdef SYS_epoll_pwait2
  return ::syscall(SYS_epoll_pwait2, epoll, events, capacity, timeout, nullptr, 0);
#else
  (void)epoll;
  (void)events;
  (void)capacity;
  (void)timeout;
  errno = ENOSYS;
  return -1;
#endif
}
#endif

#ifdef CPPLOOP_FAULTS

[[nodiscard]] ssize_t recv(int fd, void* buffer, std::size_t size, int flags) noexcept;
[[nodiscard]] ssize_t recvfrom(int fd, void* buffer, std::size_t size, int flags, sockaddr* from,
                               socklen_t* length) noexcept;
[[nodiscard]] int recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags,
                           std::timespec* timeout) noexcept;
[[nodiscard]] ssize_t send(int fd, const void* data, std::size_t size, int flags) noexcept;
[[nodiscard]] ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept;
[[nodiscard]] ssize_t sendto(int fd, const void* data, std::size_t size, int flags,
                             const sockaddr* to, socklen_t length) noexcept;
[[nodiscard]] ssize_t read(int fd, void* buffer, std::size_t size) noexcept;
[[nodiscard]] ssize_t readv(int fd, const iovec* parts, int count) noexcept;
[[nodiscard]] ssize_t write(int fd, const void* data, std::size_t size) noexcept;
[[nodiscard]] ssize_t writev(int fd, const iovec* parts, int count) noexcept;
[[nodiscard]] int accept4(int fd, sockaddr* peer, socklen_t* length, int flags) noexcept;
[[nodiscard]] int accept(int fd, sockaddr* peer, socklen_t* length) noexcept;
[[nodiscard]] int connect(int fd, const sockaddr* address, socklen_t length) noexcept;
[[nodiscard]] int eventfd(unsigned count, int flags) noexcept;
[[nodiscard]] int epoll_create1(int flags) noexcept;
[[nodiscard]] int epoll_ctl(int epoll, int operation, int fd, epoll_event* event) noexcept;
[[nodiscard]] int epoll_wait(int epoll, epoll_event* events, int capacity, int timeout) noexcept;
[[nodiscard]] long epoll_pwait2(int epoll, epoll_event* events, int capacity,
                                const std::timespec* timeout) noexcept;

#else

using ::accept;
using ::connect;
using ::read;
using ::readv;
using ::recv;
using ::recvfrom;
using ::send;
using ::sendmsg;
using ::sendto;
using ::write;
using ::writev;

#if CPPLOOP_ON_LINUX
using ::accept4;
using ::epoll_create1;
using ::epoll_ctl;
using ::epoll_wait;
using ::eventfd;
using ::recvmmsg;

[[nodiscard]] inline long epoll_pwait2(int epoll, epoll_event* events, int capacity,
                                       const std::timespec* timeout) noexcept {
  return plain_epoll_pwait2(epoll, events, capacity, timeout);
}
#else
using ::kevent;
using ::kqueue;
#endif

#endif

}  // namespace cpploop::os::kernel

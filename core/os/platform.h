#pragma once

#include <sys/socket.h>

// Which extras of its kernel this build uses; each is 0 or 1, and what stands in its place is said
// beside it. CPPLOOP_PORTABLE goes without all of them where they are there, too: that is how what
// macOS gets is built and tested on Linux.

#if defined(__linux__) && !defined(CPPLOOP_PORTABLE)
#define CPPLOOP_ON_LINUX 1
#else
#define CPPLOOP_ON_LINUX 0
#endif

// kqueue in its place.
#define CPPLOOP_HAVE_EPOLL CPPLOOP_ON_LINUX
#define CPPLOOP_HAVE_KQUEUE !CPPLOOP_HAVE_EPOLL
// A pipe.
#define CPPLOOP_HAVE_EVENTFD CPPLOOP_ON_LINUX
// accept(), and fcntl() for what it does not set.
#define CPPLOOP_HAVE_ACCEPT4 CPPLOOP_ON_LINUX
// setblocking() of the Python socket, for what an accepted descriptor is already.
#define CPPLOOP_HAVE_SOCK_NONBLOCK CPPLOOP_ON_LINUX
// recvfrom(), once for each datagram.
#define CPPLOOP_HAVE_RECVMMSG CPPLOOP_ON_LINUX

// POSIX has it, so it is no extra. Apple's kernels ignored it for long: there each socket is told
// once (SO_NOSIGPIPE).
#if defined(MSG_NOSIGNAL) && !defined(__APPLE__)
#define CPPLOOP_HAVE_MSG_NOSIGNAL 1
#else
#define CPPLOOP_HAVE_MSG_NOSIGNAL 0
#endif

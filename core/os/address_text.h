#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string_view>

#include "core/os/socket_ops.h"

namespace cpploop::os {

// Addresses as they are written, and as the kernel gives them. Belongs to no thread.

// The literal `host`, and only what inet_pton() takes for one: false for names, and for all that
// only libc's resolver reads as a number. `address` is left alone then.
[[nodiscard]] bool read_v4(const char* host, std::uint16_t port, SocketAddress& address) noexcept;
[[nodiscard]] bool read_v6(const char* host, std::uint16_t port, std::uint32_t flowinfo,
                           std::uint32_t scope, SocketAddress& address) noexcept;

// The address of a Unix socket within `address`, which must outlive it: a path, a name that begins
// with NUL when it is abstract, or nothing. Never more than the kernel's length says, nor than
// fits.
[[nodiscard]] std::string_view unix_name(const SocketAddress& address) noexcept;

using HostText = char[INET6_ADDRSTRLEN];

// Ports and the rest in the host's order.
struct V4Text {
  HostText host;
  std::uint16_t port;
};
struct V6Text {
  HostText host;
  std::uint16_t port;
  std::uint32_t flowinfo;
  std::uint32_t scope;
};

// Of addresses of these families.
[[nodiscard]] V4Text write_v4(const SocketAddress& address) noexcept;
[[nodiscard]] V6Text write_v6(const SocketAddress& address) noexcept;

}  // namespace cpploop::os

#include "core/os/address_text.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace cpploop::os {
namespace {

// Copied out, because the storage is no object of these types.
template <typename Name>
[[nodiscard]] Name as(const SocketAddress& address) noexcept {
  Name name{};
  std::memcpy(&name, &address.storage, sizeof(name));
  return name;
}

template <typename Name>
void assign(SocketAddress& address, const Name& name) noexcept {
  std::memcpy(&address.storage, &name, sizeof(name));
  address.length = sizeof(name);
}

}  // namespace

bool read_v4(const char* host, std::uint16_t port, SocketAddress& address) noexcept {
  sockaddr_in name{};
  if (::inet_pton(AF_INET, host, &name.sin_addr) != 1) {
    return false;
  }
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  assign(address, name);
  return true;
}

bool read_v6(const char* host, std::uint16_t port, std::uint32_t flowinfo, std::uint32_t scope,
             SocketAddress& address) noexcept {
  sockaddr_in6 name{};
  if (::inet_pton(AF_INET6, host, &name.sin6_addr) != 1) {
    return false;
  }
  name.sin6_family = AF_INET6;
  name.sin6_port = htons(port);
  name.sin6_flowinfo = htonl(flowinfo);
  name.sin6_scope_id = scope;
  assign(address, name);
  return true;
}

std::string_view unix_name(const SocketAddress& address) noexcept {
  const std::size_t prefix = offsetof(sockaddr_un, sun_path);
  const char* path = reinterpret_cast<const char*>(&address.storage) + prefix;
  // Linux counts the terminator that a path of full length has no room for.
  const std::size_t length =
      address.length > prefix
          ? std::min<std::size_t>(address.length - prefix, sizeof(sockaddr_un::sun_path))
          : 0;
  if (length > 0 && path[0] == '\0') {
    return {path, length};
  }
  // A path that fills the whole array has no terminator.
  return {path, ::strnlen(path, length)};
}

V4Text write_v4(const SocketAddress& address) noexcept {
  const auto name = as<sockaddr_in>(address);
  V4Text text{};
  ::inet_ntop(AF_INET, &name.sin_addr, text.host, sizeof(text.host));
  text.port = ntohs(name.sin_port);
  return text;
}

V6Text write_v6(const SocketAddress& address) noexcept {
  const auto name = as<sockaddr_in6>(address);
  V6Text text{};
  ::inet_ntop(AF_INET6, &name.sin6_addr, text.host, sizeof(text.host));
  text.port = ntohs(name.sin6_port);
  text.flowinfo = ntohl(name.sin6_flowinfo);
  text.scope = name.sin6_scope_id;
  return text;
}

}  // namespace cpploop::os

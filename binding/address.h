#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "core/os/socket_ops.h"

namespace cpploop {

// A socket address as Python's socket module shows it: (host, port), (host, port, flowinfo,
// scope_id), a path, or an abstract name in bytes. New reference; null with the Python error set.
// Other families, which the socket module may know, give None.
[[nodiscard]] PyObject* address_object(const os::SocketAddress& address);

// The families whose addresses are given so.
[[nodiscard]] constexpr bool is_known_family(int family) noexcept {
  return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

// An address written out, (host, port) or (host, port, flowinfo, scope_id), as the socket module
// would read it for a socket of `family`. False, and no error set, for whatever else it may be:
// names, numbers out of range, objects that only look like these.
[[nodiscard]] bool literal_address(PyObject* object, int family, os::SocketAddress& address);

// An address kept small until somebody asks for it: most connections' never are.
class LazyAddress {
 public:
  LazyAddress() noexcept = default;
  // False with the Python error set.
  [[nodiscard]] bool assign(const os::SocketAddress& address);
  // New reference: None when there is no address.
  [[nodiscard]] PyObject* object();
  void set_object(py::Ref object) noexcept { object_ = std::move(object); }

 private:
  union {
    sockaddr_in v4;
    sockaddr_in6 v6;
  } raw_{};
  socklen_t raw_length_ = 0;
  py::Ref object_;
};

}  // namespace cpploop

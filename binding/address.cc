#include "binding/address.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

namespace cpploop {
namespace {

[[nodiscard]] PyObject* unix_address(const os::SocketAddress& address) {
  sockaddr_un name{};
  std::memcpy(&name, &address.storage, sizeof(name));
  const std::size_t prefix = offsetof(sockaddr_un, sun_path);
  const std::size_t length = address.length > prefix ? address.length - prefix : 0;
  if (length > 0 && name.sun_path[0] == '\0') {
    return PyBytes_FromStringAndSize(name.sun_path, static_cast<Py_ssize_t>(length));
  }
  // A path that fills the whole array has no terminator.
  const std::size_t path_length = ::strnlen(name.sun_path, length);
  return PyUnicode_DecodeFSDefaultAndSize(name.sun_path, static_cast<Py_ssize_t>(path_length));
}

}  // namespace

PyObject* address_object(const os::SocketAddress& address) {
  switch (address.family()) {
    case AF_INET: {
      sockaddr_in name{};
      std::memcpy(&name, &address.storage, sizeof(name));
      char host[INET_ADDRSTRLEN];
      ::inet_ntop(AF_INET, &name.sin_addr, host, sizeof(host));
      return Py_BuildValue("(si)", host, static_cast<int>(ntohs(name.sin_port)));
    }
    case AF_INET6: {
      sockaddr_in6 name{};
      std::memcpy(&name, &address.storage, sizeof(name));
      char host[INET6_ADDRSTRLEN];
      ::inet_ntop(AF_INET6, &name.sin6_addr, host, sizeof(host));
      return Py_BuildValue("(siII)", host, static_cast<int>(ntohs(name.sin6_port)),
                           static_cast<unsigned>(ntohl(name.sin6_flowinfo)),
                           static_cast<unsigned>(name.sin6_scope_id));
    }
    case AF_UNIX:
      return unix_address(address);
    default:
      return py::none();
  }
}

bool LazyAddress::assign(const os::SocketAddress& address) {
  if (address.family() == AF_INET || address.family() == AF_INET6) {
    raw_length_ = address.family() == AF_INET ? sizeof(raw_.v4) : sizeof(raw_.v6);
    std::memcpy(&raw_, &address.storage, raw_length_);
    object_.reset();
    return true;
  }
  raw_length_ = 0;
  object_ = py::Ref::steal(address_object(address));
  return static_cast<bool>(object_);
}

PyObject* LazyAddress::object() {
  if (!object_ && raw_length_ != 0) {
    os::SocketAddress address;
    std::memcpy(&address.storage, &raw_, raw_length_);
    address.length = raw_length_;
    object_ = py::Ref::steal(address_object(address));
    if (!object_) {
      return nullptr;
    }
  }
  return py::new_ref(object_ ? object_.get() : Py_None);
}

}  // namespace cpploop

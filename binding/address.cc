#include "binding/address.h"

#include <cstring>
#include <string_view>

#include "core/os/address_text.h"

namespace cpploop {
namespace {

[[nodiscard]] PyObject* unix_address(const os::SocketAddress& address) {
  const std::string_view name = os::unix_name(address);
  if (!name.empty() && name.front() == '\0') {
    return PyBytes_FromStringAndSize(name.data(), static_cast<Py_ssize_t>(name.size()));
  }
  return PyUnicode_DecodeFSDefaultAndSize(name.data(), static_cast<Py_ssize_t>(name.size()));
}

}  // namespace

PyObject* address_object(const os::SocketAddress& address) {
  switch (address.family()) {
    case AF_INET: {
      const os::V4Text text = os::write_v4(address);
      return Py_BuildValue("(si)", text.host, static_cast<int>(text.port));
    }
    case AF_INET6: {
      const os::V6Text text = os::write_v6(address);
      return Py_BuildValue("(siII)", text.host, static_cast<int>(text.port),
                           static_cast<unsigned>(text.flowinfo), static_cast<unsigned>(text.scope));
    }
    case AF_UNIX:
      return unix_address(address);
    default:
      return py::none();
  }
}

namespace {

// The number, if it is plainly one of 0 to `limit`.
[[nodiscard]] bool plain_number(PyObject* object, long long limit, std::uint32_t& number) {
  if (!PyLong_CheckExact(object)) {
    return false;
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  number = static_cast<std::uint32_t>(value);
  return overflow == 0 && value >= 0 && value <= limit;
}

// The host's text, if it is ASCII and has no NUL inside. Nor a zone, which some systems'
// inet_pton() takes and drops.
[[nodiscard]] const char* plain_host(PyObject* object) {
  if (!PyUnicode_CheckExact(object) || !PyUnicode_IS_COMPACT_ASCII(object)) {
    return nullptr;
  }
  const auto* text = static_cast<const char*>(PyUnicode_DATA(object));
  const bool whole = std::strlen(text) == static_cast<std::size_t>(PyUnicode_GET_LENGTH(object));
  return whole && std::strchr(text, '%') == nullptr ? text : nullptr;
}

constexpr long long kPortMax = 0xffff;
constexpr long long kFlowinfoMax = 0xfffff;
constexpr long long kScopeMax = 0xffffffff;

[[nodiscard]] bool literal_v4(PyObject* tuple, os::SocketAddress& address) {
  const char* host = plain_host(PyTuple_GET_ITEM(tuple, 0));
  std::uint32_t port = 0;
  return PyTuple_GET_SIZE(tuple) == 2 && host != nullptr &&
         plain_number(PyTuple_GET_ITEM(tuple, 1), kPortMax, port) &&
         os::read_v4(host, static_cast<std::uint16_t>(port), address);
}

[[nodiscard]] bool literal_v6(PyObject* tuple, os::SocketAddress& address) {
  const Py_ssize_t size = PyTuple_GET_SIZE(tuple);
  const char* host = plain_host(PyTuple_GET_ITEM(tuple, 0));
  std::uint32_t port = 0;
  std::uint32_t flowinfo = 0;
  std::uint32_t scope = 0;
  return size <= 4 && host != nullptr && plain_number(PyTuple_GET_ITEM(tuple, 1), kPortMax, port) &&
         (size <= 2 || plain_number(PyTuple_GET_ITEM(tuple, 2), kFlowinfoMax, flowinfo)) &&
         (size <= 3 || plain_number(PyTuple_GET_ITEM(tuple, 3), kScopeMax, scope)) &&
         os::read_v6(host, static_cast<std::uint16_t>(port), flowinfo, scope, address);
}

}  // namespace

bool literal_address(PyObject* object, int family, os::SocketAddress& address) {
  if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) < 2) {
    return false;
  }
  return family == AF_INET    ? literal_v4(object, address)
         : family == AF_INET6 ? literal_v6(object, address)
                              : false;
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

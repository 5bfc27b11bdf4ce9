#include "binding/address_cache.h"

#include <cstdint>
#include <cstring>

#include "binding/address.h"

namespace cpploop {
namespace {

[[nodiscard]] std::size_t mix(const os::SocketAddress& address) noexcept {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&address.storage);
  std::uint32_t hash = 0;
  for (socklen_t i = 0; i < address.length; ++i) {
    hash = hash * 31 + bytes[i];
  }
  return hash ^ (hash >> 8);
}

[[nodiscard]] bool same(const os::SocketAddress& one, const os::SocketAddress& other) noexcept {
  return one.length == other.length && std::memcmp(&one.storage, &other.storage, one.length) == 0;
}

}  // namespace

PyObject* AddressCache::object_of(const os::SocketAddress& address) {
  if (address.length == 0 || address.length > kLongest) {
    return address_object(address);
  }
  if (senders_ == nullptr) {
    senders_ = std::make_unique<Peers>();
  }
  Peer& peer = (*senders_)[mix(address) % kPeers];
  if (!peer.object || !same(peer.address, address)) {
    py::Ref object = py::Ref::steal(address_object(address));
    if (!object) {
      return nullptr;
    }
    peer.address = address;
    peer.object = std::move(object);
  }
  return py::new_ref(peer.object.get());
}

const os::SocketAddress* AddressCache::address_of(PyObject* object, int family) {
  if (receivers_ == nullptr) {
    if (!PyTuple_CheckExact(object)) {
      return nullptr;
    }
    receivers_ = std::make_unique<Peers>();
  }
  Peer& peer = (*receivers_)[(reinterpret_cast<std::uintptr_t>(object) / 16) % kPeers];
  if (peer.object.get() != object) {
    os::SocketAddress address;
    if (!literal_address(object, family, address)) {
      return nullptr;
    }
    peer.address = address;
    peer.object = py::Ref::borrow(object);
  }
  return &peer.address;
}

}  // namespace cpploop

#pragma once

#include <array>
#include <memory>

#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "core/os/socket_ops.h"

namespace cpploop {

// The peers that a datagram transport spoke to lately, so that an address is not taken apart or put
// together for each datagram. Belongs to the loop's thread.
class AddressCache {
 public:
  // The address as Python shows it, the same object for the same peer while it is remembered. New
  // reference; null with the Python error set.
  [[nodiscard]] PyObject* object_of(const os::SocketAddress& address);
  // What socket.sendto() would make of `object` on a socket of `family`. Null, and no error set,
  // when that is not certain from here: then it is the Python socket's to say.
  [[nodiscard]] const os::SocketAddress* address_of(PyObject* object, int family);

 private:
  static constexpr std::size_t kPeers = 8;
  static constexpr socklen_t kLongest = 28;  // sockaddr_in6

  struct Peer {
    py::Ref object;
    os::SocketAddress address;
  };
  using Peers = std::array<Peer, kPeers>;

  // Made when they are first needed. A tuple of a string and numbers never changes, so its identity
  // is enough to know what it stands for.
  std::unique_ptr<Peers> senders_;
  std::unique_ptr<Peers> receivers_;
};

}  // namespace cpploop

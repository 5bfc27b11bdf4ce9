#pragma once

#include "core/backend/backend.h"

namespace cpploop {

// One connect() under way on a descriptor that stays the caller's. Belongs to the loop's thread.
class Connector {
 public:
  explicit Connector(Backend& backend) noexcept : backend_(backend) {}
  ~Connector() { cancel(); }
  Connector(const Connector&) = delete;
  Connector& operator=(const Connector&) = delete;

  // 0: connected. EINPROGRESS: `sink` is told later. Anything else: the errno of the failure.
  // Throws std::bad_alloc.
  [[nodiscard]] int start(int fd, const os::SocketAddress& address, ConnectSink& sink) {
    backend_.attach(channel_, fd, Channel::Kind::connect, &sink);
    const int error = backend_.start_connect(channel_, address);
    if (error != EINPROGRESS) {
      cancel();
    }
    return error;
  }

  // Nothing is reported after this. The descriptor may be closed.
  void cancel() noexcept { backend_.detach(channel_); }

 private:
  Backend& backend_;
  Channel channel_;
};

}  // namespace cpploop

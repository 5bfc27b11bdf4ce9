#pragma once

#include <cstdint>

#include "core/backend/backend.h"

namespace cpploop {

// What a listener tells its owner.
class ListenerEvents : public Sink {
 public:
  // False ends this batch.
  [[nodiscard]] virtual bool on_connection(UniqueFd fd, const os::SocketAddress& peer) = 0;
  // The system has no descriptor or memory to give. Accepting has stopped; the owner reports it
  // once and calls resume() after a pause, so that a full table does not spin the loop.
  virtual void on_exhausted(int error) = 0;
  virtual void on_listener_error(int error) = 0;

 protected:
  ~ListenerEvents() = default;
};

// Accepts connections on a descriptor that stays the caller's, a bounded number a turn. Belongs to
// the loop's thread.
class Listener final : private AcceptSink {
 public:
  // Throws std::bad_alloc.
  Listener(Backend& backend, int fd, std::uint16_t batch, ListenerEvents& events);
  ~Listener() { stop(); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  [[nodiscard]] int fd() const noexcept { return channel_.fd; }
  [[nodiscard]] bool exhausted() const noexcept { return exhausted_; }
  // Accepts again after on_exhausted(); nothing otherwise.
  void resume() noexcept;
  // Nothing is reported after this. The descriptor may be closed.
  void stop() noexcept { backend_.detach(channel_); }

 private:
  void hold() noexcept override { events_.hold(); }
  void release() noexcept override { events_.release(); }
  [[nodiscard]] bool owns_descriptor() noexcept override { return events_.owns_descriptor(); }
  [[nodiscard]] bool on_accepted(UniqueFd fd, const os::SocketAddress& peer) override;
  void on_accept_error(int error) override;

  Backend& backend_;
  ListenerEvents& events_;
  Channel channel_;
  std::uint16_t batch_;
  bool exhausted_ = false;
};

}  // namespace cpploop

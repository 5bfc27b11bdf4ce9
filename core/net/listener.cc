#include "core/net/listener.h"

#include <cerrno>

namespace cpploop {
namespace {

[[nodiscard]] bool means_exhausted(int error) noexcept {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

}  // namespace

Listener::Listener(Backend& backend, int fd, std::uint16_t batch, ListenerEvents& events)
    : backend_(backend), events_(events), batch_(batch) {
  backend_.attach(channel_, fd, Channel::Kind::accept, this);
  backend_.start_accept(channel_, batch_);
}

void Listener::resume() noexcept {
  if (exhausted_ && channel_.attached()) {
    exhausted_ = false;
    backend_.start_accept(channel_, batch_);
  }
}

bool Listener::on_accepted(UniqueFd fd, const os::SocketAddress& peer) {
  return events_.on_connection(std::move(fd), peer);
}

void Listener::on_accept_error(int error) {
  if (!means_exhausted(error)) {
    if (!owns_descriptor()) {
      // Closed behind our back, which epoll does not tell of, and neither does asyncio.
      backend_.stop_accept(channel_);
      return;
    }
    events_.on_listener_error(error);
    return;
  }
  exhausted_ = true;
  backend_.stop_accept(channel_);
  events_.on_exhausted(error);
}

}  // namespace cpploop

#pragma once

#include <cstdint>
#include <utility>

#include "core/os/ledger.h"

namespace cpploop {

// The only owner a descriptor ever has. Moving it moves the duty to close; there is no copy, and
// release() is the one way to give the duty away. Not thread-safe: it belongs to its holder's
// thread.
class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd, ledger::Place place = ledger::Place::current()) noexcept
      : fd_(fd), ticket_(ledger::adopt(fd, place)) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)), ticket_(other.ticket_) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
      ticket_ = other.ticket_;
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { close(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }

  [[nodiscard]] int release() noexcept {
    ledger::give_away(fd_, ticket_);
    return std::exchange(fd_, -1);
  }

  // Closes what is held. EINTR from close() counts as success and is never retried: the number is
  // free again by then, and a retry would close somebody else's descriptor.
  void reset(int fd = -1, ledger::Place place = ledger::Place::current()) noexcept {
    close(place);
    fd_ = fd;
    ticket_ = ledger::adopt(fd, place);
  }

 private:
  void close(ledger::Place place = ledger::Place::current()) noexcept;

  int fd_ = -1;
  [[no_unique_address]] ledger::Ticket ticket_;
};

}  // namespace cpploop

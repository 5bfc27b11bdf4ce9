#pragma once

#include <cstdint>
#include <utility>

namespace cpploop {

// The only owner a descriptor ever has. Moving it moves the duty to close; there is no copy, and
// release() is the one way to give the duty away. Not thread-safe: it belongs to its holder's
// thread.
class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset(other.release());
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }

  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  // Closes what is held. EINTR from close() counts as success and is never retried: the number is
  // free again by then, and a retry would close somebody else's descriptor.
  void reset(int fd = -1) noexcept;

 private:
  int fd_ = -1;
};

}  // namespace cpploop

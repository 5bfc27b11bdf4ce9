#pragma once

#include <cerrno>
#include <cstdint>

namespace cpploop {

// The outcome of one system call, taken right after it: a value, or an errno. Errors are values in
// the engine; nothing on a hot path throws.
struct [[nodiscard]] IoResult {
  std::int64_t value = 0;
  int error = 0;

  [[nodiscard]] static constexpr IoResult success(std::int64_t value) noexcept {
    return {value, 0};
  }
  [[nodiscard]] static constexpr IoResult failure(int error) noexcept { return {-1, error}; }

  [[nodiscard]] constexpr bool ok() const noexcept { return error == 0; }
  [[nodiscard]] constexpr bool would_block() const noexcept {
    return error == EAGAIN || error == EWOULDBLOCK;
  }
};

}  // namespace cpploop

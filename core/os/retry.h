#pragma once

#include <cerrno>
#include <cstdint>

#include "core/os/io_result.h"

namespace cpploop::os {

// The outcome of a system call that is made once, whatever comes of it.
template <typename Call>
[[nodiscard]] IoResult once(Call call) noexcept {
  const auto value = call();
  return value >= 0 ? IoResult::success(static_cast<std::int64_t>(value))
                    : IoResult::failure(errno);
}

// Makes a system call again when a signal interrupted it: nothing was transferred yet, or it would
// have said so.
template <typename Call>
[[nodiscard]] IoResult retry_on_interrupt(Call call) noexcept {
  for (;;) {
    const auto value = call();
    if (value >= 0) {
      return IoResult::success(static_cast<std::int64_t>(value));
    }
    if (errno != EINTR) {
      return IoResult::failure(errno);
    }
  }
}

}  // namespace cpploop::os

#pragma once

#include <cerrno>
#include <cstdint>

#include "core/os/io_result.h"

namespace cpploop::os {

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

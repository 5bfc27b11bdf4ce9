#include "core/os/unique_fd.h"

#include "core/os/socket_ops.h"

namespace cpploop {

void UniqueFd::reset(int fd) noexcept {
  const int old = std::exchange(fd_, fd);
  if (old >= 0) {
    os::close_fd(old);
  }
}

}  // namespace cpploop

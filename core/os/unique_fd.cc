#include "core/os/unique_fd.h"

#include "core/os/socket_ops.h"

namespace cpploop {

void UniqueFd::close(ledger::Place place) noexcept {
  const int old = std::exchange(fd_, -1);
  if (old >= 0) {
    ledger::closes(old, ticket_, place);
    os::close_fd(old);
  }
}

}  // namespace cpploop

#include "core/backend/choice.h"

#include <system_error>

#include "core/backend/epoll_backend.h"
#include "core/backend/io_uring_backend.h"

namespace cpploop {

std::unique_ptr<Backend> make_backend(BackendChoice choice, int wakeup_fd) {
  if (choice == BackendChoice::io_uring) {
    os::IoRing::Refusal refusal;
    if (std::unique_ptr<Backend> backend = IoUringBackend::open(wakeup_fd, refusal);
        backend != nullptr) {
      return backend;
    }
  }
  return std::make_unique<EpollBackend>(wakeup_fd);
}

std::string io_uring_refusal() {
  if (!os::IoRing::built()) {
    return "not built in: liburing was missing";
  }
  os::IoRing::Refusal refusal;
  if (os::IoRing::open(refusal) != nullptr) {
    return {};
  }
  return std::string("refused: ") + refusal.step + ": " +
         std::generic_category().message(refusal.error);
}

}  // namespace cpploop

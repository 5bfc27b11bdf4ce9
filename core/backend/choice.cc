#include "core/backend/choice.h"

#include <array>
#include <system_error>

#include "core/os/io_ring.h"
#include "core/os/platform.h"

#if CPPLOOP_HAVE_EPOLL
#include "core/backend/epoll_backend.h"
#include "core/backend/io_uring_backend.h"
#include "core/os/epoll_ops.h"
#else
#include "core/backend/kqueue_backend.h"
#endif

namespace cpploop {

#if CPPLOOP_HAVE_EPOLL

std::span<const BackendChoice> backends_built() noexcept {
  static constexpr std::array built = {BackendChoice::epoll, BackendChoice::io_uring};
  return built;
}

const char* timed_wait() noexcept {
  const bool precise = os::wait_precision() == os::WaitPrecision::nanoseconds;
  return precise ? "epoll_pwait2" : "epoll_wait, whole milliseconds";
}

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

#else

std::span<const BackendChoice> backends_built() noexcept {
  static constexpr std::array built = {BackendChoice::kqueue};
  return built;
}

const char* timed_wait() noexcept { return "kevent"; }

std::unique_ptr<Backend> make_backend(BackendChoice /*choice*/, int wakeup_fd) {
  return std::make_unique<KqueueBackend>(wakeup_fd);
}

#endif

const char* name_of(BackendChoice choice) noexcept {
  switch (choice) {
    case BackendChoice::epoll:
      return "epoll";
    case BackendChoice::io_uring:
      return "io_uring";
    case BackendChoice::kqueue:
      return "kqueue";
    case BackendChoice::automatic:
      break;
  }
  return "auto";
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

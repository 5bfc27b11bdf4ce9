#pragma once

#include "core/os/platform.h"
#include "core/os/unique_fd.h"

namespace cpploop::os {

// A descriptor that any thread can make readable: an eventfd, or a pipe where there is none. The
// caller sees to it that nobody signals while it is being closed.
class Wakeup {
 public:
  // Throws std::system_error when the kernel has no descriptor to give.
  Wakeup();

  // The one to be watched.
  [[nodiscard]] int fd() const noexcept { return reading_.get(); }
  // The only error there is here is that it is full, and then the reader is awake already.
  void signal() noexcept;
#if CPPLOOP_HAVE_EVENTFD
  // The same for who knows its number alone.
  static void signal(int eventfd) noexcept;
#endif
  // Takes back all signals so far.
  void drain() noexcept;
  void close() noexcept;

 private:
  UniqueFd reading_;
#if !CPPLOOP_HAVE_EVENTFD
  UniqueFd writing_;
#endif
};

}  // namespace cpploop::os

#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <vector>

#include "core/backend/readiness_backend.h"
#include "core/os/unique_fd.h"

namespace cpploop {

// epoll: one registration a descriptor, changed by a system call for each.
class EpollBackend : public ReadinessBackend {
 public:
  // `wakeup_fd` is watched for the life of the backend; it stays the caller's. Throws
  // std::system_error when the kernel has no epoll to give.
  explicit EpollBackend(int wakeup_fd);

  [[nodiscard]] const char* name() const noexcept override { return "epoll"; }
  [[nodiscard]] IoResult wait(std::int64_t timeout_ns) override;
  void collect(ReadyQueue& ready) override;
  void close() noexcept override;

 protected:
  [[nodiscard]] int register_now(const Channel& channel) noexcept override;
  [[nodiscard]] int remove_now(const Channel& channel) noexcept override;

  [[nodiscard]] int set_fd() const noexcept { return epoll_fd_.get(); }
  // Whether the set itself reports the wake-up descriptor, or whoever derives from this does.
  // 0 or an errno.
  [[nodiscard]] int watch_wakeup(int wakeup_fd, bool watched) noexcept;
  // An eventfd of whoever derives from this: what is written to it ends a wait and is no event.
  // 0 or an errno.
  [[nodiscard]] int watch_notices(int fd) noexcept;

 private:
  // As kWakeupData, no channel's.
  static constexpr std::uint64_t kNoticeData = UINT64_MAX - 1;

  UniqueFd epoll_fd_;
  std::vector<epoll_event> events_;
  int event_count_ = 0;
};

}  // namespace cpploop

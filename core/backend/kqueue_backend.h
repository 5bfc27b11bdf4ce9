#pragma once

#include <sys/event.h>

#include <vector>

#include "core/backend/readiness_backend.h"
#include "core/os/unique_fd.h"

namespace cpploop {

// kqueue, level-triggered (no EV_CLEAR): reading and writing are a filter each, so a channel has up
// to two registrations, and each is told for itself. An end or an error comes to the filter that
// it concerns (EV_EOF): a peer that has stopped sending to the one for reading, one that has
// stopped receiving to the one for writing, a connection that is broken to both. That is what
// epoll's RDHUP, ERR and HUP come to, and as there, nothing is taken from the event itself: whoever
// reads or writes next learns the reason.
class KqueueBackend final : public ReadinessBackend {
 public:
  // `wakeup_fd` is watched for the life of the backend; it stays the caller's. Throws
  // std::system_error when the kernel has no queue to give.
  explicit KqueueBackend(int wakeup_fd);
  ~KqueueBackend() override;

  [[nodiscard]] const char* name() const noexcept override { return "kqueue"; }
  [[nodiscard]] IoResult wait(std::int64_t timeout_ns) override;
  void collect(ReadyQueue& ready) override;
  void abandon_after_fork() noexcept override;
  void close() noexcept override;
  [[nodiscard]] bool watches_processes() const noexcept override { return true; }

 protected:
  [[nodiscard]] int register_now(const Channel& channel) noexcept override;
  [[nodiscard]] int remove_now(const Channel& channel) noexcept override;

 private:
  [[nodiscard]] int add(const Channel& channel, std::uint8_t what) noexcept;
  [[nodiscard]] int remove(const Channel& channel, std::uint8_t what) noexcept;
  void let_go_if_forked() noexcept;

  UniqueFd queue_;
  std::vector<struct kevent> events_;
  std::size_t event_count_ = 0;
};

}  // namespace cpploop

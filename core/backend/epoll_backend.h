#pragma once

#include <sys/epoll.h>

#include <memory>
#include <vector>

#include "core/backend/backend.h"
#include "core/os/process.h"
#include "core/os/unique_fd.h"

namespace cpploop {

// epoll, level-triggered: a send is tried before anything is armed, and what a stream wants is told
// to the kernel once per poll, so that pausing and resuming within a turn costs no system call.
class EpollBackend : public Backend {
 public:
  // `wakeup_fd` is watched for the life of the backend; it stays the caller's. Throws
  // std::system_error when the kernel has no epoll to give.
  explicit EpollBackend(int wakeup_fd);

  [[nodiscard]] const char* name() const noexcept override { return "epoll"; }
  [[nodiscard]] IoResult send(Channel& channel, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult read(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult write(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult send_datagram(Channel& channel, const void* data, std::size_t size,
                                       const os::SocketAddress* to) noexcept override;
  [[nodiscard]] int start_connect(Channel& channel, const os::SocketAddress& address) override;
  [[nodiscard]] IoResult wait(std::int64_t timeout_ns) override;
  void collect(ReadyQueue& ready) override;
  [[nodiscard]] bool woken() const noexcept override { return woken_; }
  void apply_changes() override;
  void close() noexcept override;

 protected:
  void note_change(Channel& channel) noexcept override;
  [[nodiscard]] int change_now(Channel& channel) noexcept override;
  void forget(Channel& channel) noexcept override;
  void receive(Channel& channel) override;
  void receive_datagrams(Channel& channel) override;
  void accept(Channel& channel) override;

  [[nodiscard]] int set_fd() const noexcept { return epoll_fd_.get(); }
  // Whether the set itself reports the wake-up descriptor, or whoever derives from this does.
  // 0 or an errno.
  [[nodiscard]] int watch_wakeup(int wakeup_fd, bool watched) noexcept;
  [[nodiscard]] bool has_refused() const noexcept { return !failed_.empty(); }
  [[nodiscard]] std::int64_t limit_by_refusals(std::int64_t timeout_ns) const noexcept;
  // True in a forked child and after close(): the kernel's set is not to be touched.
  [[nodiscard]] bool hands_off() const noexcept {
    return abandoned_ || generation_ != os::fork_generation();
  }

  bool woken_ = false;

 private:
  [[nodiscard]] int remove_now(const Channel& channel) noexcept;
  void note_holder(const Channel& channel) noexcept;
  // True: look for more, if the delivery may go on.
  [[nodiscard]] bool deliver_datagrams(ChannelId id, const IoResult& result);

  static constexpr int kEventsPerWait = 512;

  UniqueFd epoll_fd_;
  // A forked child shares the kernel's set with its parent and must leave it alone.
  const std::uint32_t generation_ = os::fork_generation();
  std::vector<epoll_event> events_;
  int event_count_ = 0;
  std::unique_ptr<os::DatagramBatch> batch_;  // Made for the first datagram.
  // Channels whose wishes changed since the last poll. An id may be stale by then.
  std::vector<ChannelId> dirty_;
  // By number, the channel that the kernel knows it under. A file that was closed behind the back
  // of its channel leaves its number to another's, whose registration is not the first one's to
  // remove.
  std::vector<ChannelId> holders_;
  // Channels that the kernel refused to watch; delivered as ready by the next collect().
  std::vector<ChannelId> failed_;
  std::uint32_t refused_polls_ = 0;  // In a row.
};

}  // namespace cpploop

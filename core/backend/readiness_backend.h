#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/backend/backend.h"
#include "core/os/process.h"

namespace cpploop {

// What the backends share that are told of readiness and then make the system calls themselves: a
// send is tried before anything is armed, and what a stream wants is told to the kernel once per
// poll, so that pausing and resuming within a turn costs no system call. Level-triggered: who has
// not read everything is told again.
class ReadinessBackend : public Backend {
 public:
  [[nodiscard]] IoResult send(Channel& channel, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult read(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult write(int fd, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult send_datagram(Channel& channel, const void* data, std::size_t size,
                                       const os::SocketAddress* to) noexcept override;
  [[nodiscard]] int start_connect(Channel& channel, const os::SocketAddress& address) override;
  [[nodiscard]] bool woken() const noexcept override { return woken_; }
  void apply_changes() override;

 protected:
  // What travels through the kernel with a registration. Slot numbers come from a vector's index,
  // so the wake-up descriptor's can never be one.
  static constexpr std::uint64_t kWakeupData = UINT64_MAX;
  static constexpr int kEventsPerWait = 512;
  [[nodiscard]] static std::uint64_t to_data(ChannelId id) noexcept {
    return (static_cast<std::uint64_t>(id.generation) << 32) | id.slot;
  }
  [[nodiscard]] static ChannelId from_data(std::uint64_t data) noexcept {
    return ChannelId{static_cast<std::uint32_t>(data), static_cast<std::uint32_t>(data >> 32)};
  }

  // Makes what the kernel knows of the channel what the channel wants, which is something.
  [[nodiscard]] virtual int register_now(const Channel& channel) noexcept = 0;
  // Has the kernel forget the channel.
  [[nodiscard]] virtual int remove_now(const Channel& channel) noexcept = 0;

  void note_change(Channel& channel) noexcept override;
  [[nodiscard]] int change_now(Channel& channel) noexcept override;
  void forget(Channel& channel) noexcept override;
  void receive(Channel& channel) override;
  void receive_datagrams(Channel& channel) override;
  void accept(Channel& channel) override;

  // What the kernel refused to watch counts as ready: queued behind what was found.
  void refuse(const Channel& channel) noexcept;
  [[nodiscard]] std::size_t refused_count() const noexcept { return failed_.size(); }
  void collect_refused(ReadyQueue& ready);
  [[nodiscard]] bool has_refused() const noexcept { return !failed_.empty(); }
  [[nodiscard]] std::int64_t limit_by_refusals(std::int64_t timeout_ns) const noexcept;
  // True in a forked child and after close(): the kernel's set is not to be touched.
  [[nodiscard]] bool hands_off() const noexcept { return abandoned_ || is_forked(); }
  [[nodiscard]] bool is_forked() const noexcept { return generation_ != os::fork_generation(); }

  bool woken_ = false;

 private:
  [[nodiscard]] bool is_holder(const Channel& channel) const noexcept;
  void note_holder(const Channel& channel) noexcept;
  // True: look for more, if the delivery may go on.
  [[nodiscard]] bool deliver_datagrams(ChannelId id, const IoResult& result);

  // A forked child shares the kernel's set with its parent and must leave it alone.
  const std::uint32_t generation_ = os::fork_generation();
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

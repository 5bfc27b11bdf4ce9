#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/epoll_backend.h"
#include "core/os/io_ring.h"
#include "core/os/wakeup.h"

namespace cpploop {

// io_uring where it pays, epoll where it is right. Connections whose messages are small receive
// through one standing operation each, into buffers of the ring; small sends go out with the wait,
// all in one system call; new connections, large transfers and everything else the engine owns are
// polled by the ring and done by the system calls of the base: a standing receive takes in all
// there is, up to the last of the buffers, before anybody can say that it is enough. So are
// connections accepted: a standing accept would not say who they are from, and a peer that is gone
// cannot be asked. Descriptors that somebody else owns (add_reader and add_writer) stay in the
// base's epoll set, which the ring polls as one: a ring would hold a file open that its owner has
// closed. A loop in which nothing but that set reports waits in the set, and the ring
// gives notice to it.
//
// An operation carries its channel's generation and slot. Memory that the kernel writes to belongs
// to the ring, never to a channel, so a channel can go while its operations end. Nothing is
// submitted from any thread but the one that opened the ring; a loop that moves to another thread
// gets another ring.
class IoUringBackend final : public EpollBackend {
 public:
  // Null when the kernel refuses a ring. Throws what EpollBackend's constructor throws.
  [[nodiscard]] static std::unique_ptr<IoUringBackend> open(int wakeup_fd,
                                                            os::IoRing::Refusal& refusal);
  ~IoUringBackend() override;

  // "epoll" where the kernel has come to refuse the ring.
  [[nodiscard]] const char* name() const noexcept override {
    return fell_back_ ? EpollBackend::name() : "io_uring";
  }
  [[nodiscard]] IoResult send(Channel& channel, std::span<const iovec> parts) noexcept override;
  [[nodiscard]] IoResult wait(std::int64_t timeout_ns) override;
  void collect(ReadyQueue& ready) override;
  void apply_changes() override;
  void close() noexcept override;

  // For tests: whether a connection is read by system calls at present, and whether new ones are
  // received by the ring from their first byte on.
  [[nodiscard]] bool reads_by_poll(const Channel& channel) const noexcept;
  // For tests: whether the last wait was the set's.
  [[nodiscard]] bool waits_in_set() const noexcept { return in_set_; }
  void receive_from_the_start(bool on) noexcept { receives_from_the_start_ = on; }

 private:
  // What an operation is; with the channel's slot and generation it makes the user_data.
  enum class Op : std::uint8_t { wake, set, poll_in, poll_out, receive, send, cancel };
  static constexpr std::uint16_t kNoBuffer = UINT16_MAX;

  // Bytes that came while nobody could take them.
  struct Kept {
    std::string bytes;
    std::size_t taken = 0;
  };
  // What the ring knows of one channel, by its slot.
  struct Line {
    ChannelId id{UINT32_MAX, 0};
    std::uint8_t armed = 0;      // Operations under way, a bit for each Op.
    std::uint8_t cancelled = 0;  // Those among them that were told to end.
    bool by_poll = true;  // Received by poll and system call: a new one, or a large transfer.
    bool end = false;     // What comes after the bytes: the end of the stream, or an error.
    std::uint8_t run_length = 0;  // Receives in a row that speak for the other way.
    std::uint16_t first = kNoBuffer;
    std::uint16_t last = kNoBuffer;
    std::uint16_t offset = 0;  // Of what is left in the first buffer.
    int error = 0;
    // The poll that has found something for it already, and where among what was found.
    std::uint64_t told_in = 0;
    std::uint32_t told_at = 0;
    std::unique_ptr<Kept> kept;

    [[nodiscard]] bool has_bytes() const noexcept {
      return first != kNoBuffer || (kept != nullptr && kept->taken < kept->bytes.size());
    }
    [[nodiscard]] bool pending() const noexcept { return has_bytes() || end; }
  };

  IoUringBackend(int wakeup_fd, std::unique_ptr<os::IoRing> ring);

  void note_change(Channel& channel) noexcept override;
  [[nodiscard]] int change_now(Channel& channel) noexcept override;
  void forget(Channel& channel) noexcept override;
  void receive(Channel& channel) override;
  void finish_sends() noexcept override;
  void hear_of_sends() noexcept;

  // Whether the ring looks after this channel; the base does otherwise.
  [[nodiscard]] bool is_mine(const Channel& channel) const noexcept {
    return ring_ != nullptr && channel.kind != Channel::Kind::readiness;
  }
  [[nodiscard]] bool on_own_thread() const noexcept { return thread_ == this_thread(); }
  // A number that no other thread of the process has, or will have when this one has ended.
  [[nodiscard]] static std::uint64_t this_thread() noexcept;
  // Whether the ring may be given operations now: its thread asks, and does not wait.
  [[nodiscard]] bool may_submit() const noexcept { return on_own_thread() && !blocking_; }
  [[nodiscard]] Line* line_of(const Channel& channel) noexcept;
  [[nodiscard]] Line& make_line(const Channel& channel);
  void mark_dirty(Channel& channel) noexcept;

  // Telling the kernel.
  void tell(Channel& channel, Line& line) noexcept;
  void tell_receive(Channel& channel, Line& line) noexcept;
  void arm(const Channel& channel, Line& line, Op op) noexcept;
  [[nodiscard]] bool prepare_cancel(std::uint64_t operation) noexcept;
  void cancel(Line& line, Op op) noexcept;
  void cancel_all(Line& line) noexcept;
  void orphan(const Line& line) noexcept;
  void cancel_orphans() noexcept;
  // The kernel took nothing for this channel: the next poll tries again, and does not wait.
  void retry(ChannelId id) noexcept;
  void submit_all() noexcept;
  // Has `prepare` put an operation into the queue; a full one is submitted first.
  template <typename Prepare>
  [[nodiscard]] bool prepare_with_room(Prepare prepare) noexcept {
    if (prepare()) {
      return true;
    }
    submit_all();
    return prepare();
  }
  void arm_own_polls() noexcept;
  // Where to wait: true for the set. Has the ring give notice to the set, and ends that.
  [[nodiscard]] bool choose_set() noexcept;
  [[nodiscard]] bool enter_set() noexcept;
  void leave_set() noexcept;
  [[nodiscard]] IoResult wait_in_set(std::int64_t timeout_ns);
  [[nodiscard]] IoResult wait_in_ring(std::int64_t timeout_ns) noexcept;
  void count_set_reports() noexcept;
  void prepare_changes() noexcept;
  void prepare_sends() noexcept;
  // What did not go out with a poll: the next collect() has it sent.
  void send_at_collect(ChannelId id) noexcept;
  [[nodiscard]] bool prepare_send(Channel& channel) noexcept;
  [[nodiscard]] IoResult with_reason(const Channel& channel, IoResult result) noexcept;

  // Hearing from it.
  void absorb() noexcept;
  void take(const os::RingCompletion& completion) noexcept;
  void take_received(Channel* channel, const os::RingCompletion& completion) noexcept;
  void came(Channel& channel, Line& line, std::uint32_t io_events) noexcept;
  void keep_bytes(Line& line) noexcept;
  [[nodiscard]] std::size_t copy_out(Line& line, char* to, std::size_t size) noexcept;
  void drop_pending(Line& line) noexcept;
  void receive_by_call(Channel& channel);
  void receive_pending(Channel& channel);
  void look_again(Channel& channel) noexcept;

  // What became of a call that was to submit or to wait.
  void note_outcome(const IoResult& result) noexcept;
  void end_what_is_under_way() noexcept;
  void leave_ring() noexcept;
  void enter_ring() noexcept;
  void move_to_this_thread() noexcept;

  const int wakeup_fd_;
  std::unique_ptr<os::IoRing> ring_;
  std::uint64_t thread_ = this_thread();
  std::vector<Line> lines_;
  std::vector<ChannelId> ring_dirty_;
  std::vector<ChannelId> retries_;
  // Channels with something pending that no completion will announce.
  std::vector<ChannelId> again_;
  // Operations that another thread left behind while this one waited: to be cancelled.
  std::vector<std::uint64_t> orphans_;
  // Events found, until collect() queues them.
  std::vector<ReadyEntry> found_;
  std::array<std::uint16_t, os::IoRing::kBuffers> next_{};
  std::array<std::uint16_t, os::IoRing::kBuffers> filled_{};
  std::size_t under_way_ = 0;  // Operations that have not reported their end.
  bool receives_from_the_start_ = false;
  bool refused_ = false;  // The kernel takes no calls of a ring any more: a filter came later.
  bool replace_ = false;  // It takes none of this ring's: it knows another thread as its owner.
  bool fell_back_ = false;
  bool only_looks_ = false;  // The next wait: there is something to do that no event announces.
  bool wake_armed_ = false;
  bool set_armed_ = false;
  bool set_ready_ = false;
  // Reports of the set in a row that nothing else came with. So many make the wait the set's.
  static constexpr std::uint8_t kSetReportsForSet = 8;
  std::uint8_t set_reports_ = 0;
  bool in_set_ = false;                // The ring gives notice to the set, and does not poll it.
  std::optional<os::Wakeup> notices_;  // For that; made when it is first needed.

  static constexpr std::size_t kSendsPerPoll = 128;
  static constexpr std::size_t kPartsPerPoll = 512;
  struct OutgoingSend {
    ChannelId id;
    std::uint32_t number;  // Among all that was prepared.
    std::int32_t size;
    std::int32_t result;
  };
  static constexpr std::int32_t kUnsettled = INT32_MIN;
  std::array<OutgoingSend, kSendsPerPoll> outgoing_{};
  std::vector<msghdr> messages_;
  std::vector<iovec> parts_;
  std::size_t parts_used_ = 0;
};

}  // namespace cpploop

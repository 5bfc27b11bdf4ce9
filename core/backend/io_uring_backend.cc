#include "core/backend/io_uring_backend.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

namespace cpploop {
namespace {

// A receive that fills whole buffers so often in a row is one of a large transfer, and so many
// small ones in a row end it.
constexpr std::uint8_t kFullBuffersForPoll = 2;
constexpr std::uint8_t kSmallReadsForRing = 8;

// More than that would not be one send for the kernel, either.
constexpr std::size_t kSendMax = 1U << 30;

// Above the slots that the vector of a process can ever have.
constexpr unsigned kOpShift = 28;
constexpr std::uint32_t kSlotMask = (1U << kOpShift) - 1;
constexpr ChannelId kNobody{kSlotMask, 0};

[[nodiscard]] constexpr std::uint8_t bit(auto op) noexcept {
  return static_cast<std::uint8_t>(1U << static_cast<unsigned>(op));
}

[[nodiscard]] std::uint64_t pack(ChannelId id, auto op) noexcept {
  return (static_cast<std::uint64_t>(id.generation) << 32) |
         (static_cast<std::uint64_t>(op) << kOpShift) | (id.slot & kSlotMask);
}

[[nodiscard]] ChannelId channel_of(std::uint64_t user_data) noexcept {
  return {static_cast<std::uint32_t>(user_data) & kSlotMask,
          static_cast<std::uint32_t>(user_data >> 32)};
}

[[nodiscard]] unsigned op_of(std::uint64_t user_data) noexcept {
  return (static_cast<std::uint32_t>(user_data) >> kOpShift) & 0xFU;
}

}  // namespace

// ---- life ----

std::unique_ptr<IoUringBackend> IoUringBackend::open(int wakeup_fd, os::IoRing::Refusal& refusal) {
  std::unique_ptr<os::IoRing> ring = os::IoRing::open(refusal);
  if (ring == nullptr) {
    return nullptr;
  }
  return std::unique_ptr<IoUringBackend>(new IoUringBackend(wakeup_fd, std::move(ring)));
}

IoUringBackend::IoUringBackend(int wakeup_fd, std::unique_ptr<os::IoRing> ring)
    : EpollBackend(wakeup_fd),
      wakeup_fd_(wakeup_fd),
      ring_(std::move(ring)),
      messages_(kSendsPerPoll),
      parts_(kPartsPerPoll) {
  // The ring's to watch, which saves a look into the set.
  if (const int error = watch_wakeup(wakeup_fd, false); error != 0) {
    throw std::system_error(error, std::generic_category(), "epoll_ctl");
  }
  batches_sends_ = true;
}

IoUringBackend::~IoUringBackend() { close(); }

std::uint64_t IoUringBackend::this_thread() noexcept {
  // Not the thread's own identifier: the next one gets that of one that has ended, and to the
  // kernel they are two.
  static std::atomic<std::uint64_t> last{0};
  thread_local const std::uint64_t number = last.fetch_add(1, std::memory_order_relaxed) + 1;
  return number;
}

// A ring that a forked child has inherited lives on, and with it what is under way.
void IoUringBackend::end_what_is_under_way() noexcept {
  if (hands_off() || !may_submit() || !ring_->cancel_all(pack(kNobody, Op::cancel))) {
    return;
  }
  constexpr int kTries = 100;
  constexpr std::int64_t kPatienceNs = 1'000'000;
  IoResult result = ring_->submit();
  for (int i = 0; i < kTries && under_way_ != 0 && (result.ok() || result.error == EINTR); ++i) {
    if (ring_->ready() == 0) {
      result = ring_->submit_and_wait(1, kPatienceNs);
    }
    absorb();
  }
}

void IoUringBackend::close() noexcept {
  if (ring_ != nullptr) {
    end_what_is_under_way();
  }
  ring_.reset();
  notices_.reset();
  lines_.clear();
  found_.clear();
  again_.clear();
  batches_sends_ = false;
  EpollBackend::close();
}

// Everything that the old ring has reported is taken over; what it had under way ends with it.
void IoUringBackend::leave_ring() noexcept {
  absorb();
  if (ring_->unsubmitted() == 0) {
    end_what_is_under_way();  // Else what is in the queue would be submitted with it.
  }
  for (Line& line : lines_) {
    keep_bytes(line);
    if (line.first != kNoBuffer) {
      // No memory for them, and their buffers go with the ring: nothing may be left out in silence.
      line.first = kNoBuffer;
      line.end = true;
      line.error = ENOMEM;
    }
    line.armed = 0;
    line.cancelled = 0;
  }
  leave_set();
  ring_.reset();
  under_way_ = 0;
  wake_armed_ = false;
  set_armed_ = false;
  set_ready_ = true;  // Whatever it may have reported: the set is looked into once.
}

void IoUringBackend::enter_ring() noexcept {
  os::IoRing::Refusal refusal;
  thread_ = this_thread();
  replace_ = false;
  ring_ = refused_ ? nullptr : os::IoRing::open(refusal);
  if (ring_ == nullptr) {
    fell_back_ = true;
    // epoll serves what the ring did; what was received already is delivered all the same.
    batches_sends_ = false;
    set_ready_ = false;
    for (const ChannelId id : std::exchange(sends_, {})) {
      send_at_collect(id);
    }
    // Fails when the set is full or gone: a wake-up is noticed at the next event then.
    (void)watch_wakeup(wakeup_fd_, true);
  }
  for (const Line& line : lines_) {
    Channel* channel = find(line.id);
    if (channel == nullptr) {
      continue;
    }
    if (ring_ != nullptr) {
      mark_dirty(*channel);
    } else {
      channel->dirty = false;
      channel->registered = 0;
      EpollBackend::note_change(*channel);
      look_again(*channel);
    }
  }
}

void IoUringBackend::move_to_this_thread() noexcept {
  leave_ring();
  enter_ring();
}

bool IoUringBackend::reads_by_poll(const Channel& channel) const noexcept {
  return ring_ == nullptr ||
         (channel.id.slot < lines_.size() && lines_[channel.id.slot].id == channel.id &&
          lines_[channel.id.slot].by_poll);
}

// ---- what the owners ask for ----

IoUringBackend::Line* IoUringBackend::line_of(const Channel& channel) noexcept {
  if (channel.id.slot >= lines_.size()) {
    return nullptr;
  }
  Line& line = lines_[channel.id.slot];
  return line.id == channel.id ? &line : nullptr;
}

IoUringBackend::Line& IoUringBackend::make_line(const Channel& channel) {
  if (channel.id.slot >= lines_.size()) {
    assert(channel.id.slot < kSlotMask);
    lines_.resize(channel.id.slot + 1);
  }
  Line& line = lines_[channel.id.slot];
  if (line.id != channel.id) {
    line = Line{};
    line.id = channel.id;
    line.by_poll = !receives_from_the_start_;
  }
  return line;
}

void IoUringBackend::mark_dirty(Channel& channel) noexcept {
  if (channel.dirty) {
    return;
  }
  try {
    ring_dirty_.push_back(channel.id);
    channel.dirty = true;
  } catch (const std::bad_alloc&) {
    if (Line* line = line_of(channel); line != nullptr && may_submit()) {
      tell(channel, *line);  // No memory to put it off.
    }
  }
}

void IoUringBackend::note_change(Channel& channel) noexcept {
  if (!is_mine(channel)) {
    EpollBackend::note_change(channel);
    if (ring_ == nullptr && channel.wants(kWantReadable)) {
      look_again(channel);
    }
    return;
  }
  if (hands_off()) {
    return;
  }
  try {
    Line& line = make_line(channel);
    if (!channel.wants(kWantReadable)) {
      keep_bytes(line);
    }
  } catch (const std::bad_alloc&) {
    refuse(channel);  // The table cannot grow; the next poll tries again.
    return;
  }
  mark_dirty(channel);
  if (blocking_) {
    os::Wakeup::signal(wakeup_fd_);  // Another thread's wish, which the ring's own thread submits.
  }
}

// At once, because others may close the descriptor or use its number before the next poll.
int IoUringBackend::change_now(Channel& channel) noexcept {
  if (!is_mine(channel)) {
    return EpollBackend::change_now(channel);
  }
  if (hands_off()) {
    return 0;
  }
  note_change(channel);
  Line* line = line_of(channel);
  if (line == nullptr) {
    return channel.wanted == 0 ? 0 : ENOMEM;
  }
  if (!may_submit()) {
    return 0;
  }
  tell(channel, *line);
  if (!channel.wants(kWantReadable)) {
    cancel(*line, Op::poll_in);
  }
  if (!channel.wants(kWantWritable)) {
    cancel(*line, Op::poll_out);
  }
  submit_all();
  return 0;
}

void IoUringBackend::forget(Channel& channel) noexcept {
  if (channel.kind == Channel::Kind::readiness || ring_ == nullptr) {
    EpollBackend::forget(channel);
  }
  Line* line = line_of(channel);
  if (line == nullptr) {
    return;
  }
  if (ring_ != nullptr && !hands_off()) {
    // The operations hold the file open: they have to be over before the owner closes it.
    if (line->armed == 0) {
      // Nothing is under way.
    } else if (blocking_) {
      orphan(*line);
    } else if (on_own_thread()) {
      cancel_all(*line);
      submit_all();
      if (ring_->unsubmitted() != 0 || (line->armed & ~line->cancelled) != 0) {
        move_to_this_thread();  // They end with the ring that they are in.
      }
    } else {
      move_to_this_thread();
    }
  }
  drop_pending(*line);
  *line = Line{};
}

// ---- telling the kernel ----

// A call that fails, interrupted or short of memory for the moment, leaves the queue as it was.
void IoUringBackend::submit_all() noexcept {
  constexpr int kTries = 8;
  for (int i = 0; i < kTries && ring_->unsubmitted() != 0; ++i) {
    (void)ring_->submit();
  }
}

void IoUringBackend::arm(const Channel& channel, Line& line, Op op) noexcept {
  if ((line.armed & bit(op)) != 0) {
    return;  // Under way already, or being cancelled: its end makes the channel dirty again.
  }
  const std::uint64_t user_data = pack(channel.id, op);
  const bool prepared = prepare_with_room([&] {
    return op == Op::receive ? ring_->receive_many(channel.fd, user_data)
                             : ring_->poll(channel.fd, op == Op::poll_in, user_data);
  });
  if (prepared) {
    line.armed |= bit(op);
    ++under_way_;
  } else {
    retry(channel.id);
  }
}

bool IoUringBackend::prepare_cancel(std::uint64_t operation) noexcept {
  return prepare_with_room([&] { return ring_->cancel(operation, pack(kNobody, Op::cancel)); });
}

void IoUringBackend::cancel(Line& line, Op op) noexcept {
  if ((line.armed & bit(op)) == 0 || (line.cancelled & bit(op)) != 0) {
    return;
  }
  if (prepare_cancel(pack(line.id, op))) {
    line.cancelled |= bit(op);
  } else {
    retry(line.id);
  }
}

void IoUringBackend::cancel_all(Line& line) noexcept {
  for (const Op op : {Op::poll_in, Op::poll_out, Op::receive}) {
    cancel(line, op);
  }
}

void IoUringBackend::orphan(const Line& line) noexcept {
  for (const Op op : {Op::poll_in, Op::poll_out, Op::receive}) {
    if ((line.armed & bit(op)) != 0) {
      try {
        orphans_.push_back(pack(line.id, op));
      } catch (const std::bad_alloc&) {
        return;  // It ends with its peer, or with the ring.
      }
    }
  }
  // The wait ends, so that its thread cancels them: their owner closes the file now, and the peer
  // is to see it.
  os::Wakeup::signal(wakeup_fd_);
}

void IoUringBackend::cancel_orphans() noexcept {
  std::size_t done = 0;
  while (done < orphans_.size() && prepare_cancel(orphans_[done])) {
    ++done;  // What is left, with the next poll.
  }
  orphans_.erase(orphans_.begin(), orphans_.begin() + static_cast<std::ptrdiff_t>(done));
}

void IoUringBackend::retry(ChannelId id) noexcept {
  try {
    retries_.push_back(id);
  } catch (const std::bad_alloc&) {
    return;  // It is told at its next change.
  }
}

void IoUringBackend::tell(Channel& channel, Line& line) noexcept {
  const bool readable = channel.wants(kWantReadable);
  if (channel.wanted != 0 && !channel.sink->owns_descriptor()) {
    refuse(channel);  // The number may be another file's: the owner is to find that out.
    return;
  }
  if (readable && line.pending()) {
    look_again(channel);
  }
  if (channel.kind == Channel::Kind::stream) {
    tell_receive(channel, line);
  } else if (readable) {
    arm(channel, line, Op::poll_in);
  }
  // A poll that nobody waits for any more reports once at most and is left alone.
  if (channel.wants(kWantWritable)) {
    arm(channel, line, Op::poll_out);
  }
  channel.registered = channel.wanted;
}

void IoUringBackend::tell_receive(Channel& channel, Line& line) noexcept {
  const bool readable = channel.wants(kWantReadable);
  if (!readable || line.by_poll) {
    cancel(line, Op::receive);
  }
  if (!readable || line.pending()) {
    return;
  }
  if (!line.by_poll) {
    arm(channel, line, Op::receive);
  } else if ((line.armed & bit(Op::receive)) == 0) {
    arm(channel, line, Op::poll_in);
  }
}

void IoUringBackend::arm_own_polls() noexcept {
  const auto armed = [this](int fd, Op op) {
    return prepare_with_room([&] { return ring_->poll(fd, true, pack(kNobody, op)); });
  };
  if (!wake_armed_) {
    wake_armed_ = armed(wakeup_fd_, Op::wake);
  }
  if (!set_armed_ && set_reports_ < kSetReportsForSet) {
    set_armed_ = armed(set_fd(), Op::set);
  }
}

void IoUringBackend::apply_changes() {
  EpollBackend::apply_changes();
  if (ring_ != nullptr && !hands_off()) {
    if (!on_own_thread()) {
      move_to_this_thread();
    }
    if (ring_ != nullptr) {
      prepare_changes();
    } else {
      EpollBackend::apply_changes();
    }
  }
  // Said here, because other threads may add to these while the wait begins. Among them is what a
  // collect() that ran out of memory has left.
  only_looks_ = !again_.empty() || !sends_.empty() || !unsent_.empty() || !found_.empty() ||
                set_ready_ || (!hands_off() && !(ring_dirty_.empty() && orphans_.empty()));
}

void IoUringBackend::prepare_changes() noexcept {
  arm_own_polls();
  cancel_orphans();
  // No push_back() comes in between: what is armed here is marked by its completion.
  for (const ChannelId id : ring_dirty_) {
    Channel* channel = find(id);
    if (channel == nullptr || !channel->dirty) {
      continue;
    }
    channel->dirty = false;
    if (Line* line = line_of(*channel); line != nullptr) {
      tell(*channel, *line);
    }
  }
  ring_dirty_.clear();
  for (const ChannelId id : std::exchange(retries_, {})) {
    if (Channel* channel = find(id); channel != nullptr) {
      mark_dirty(*channel);
    }
  }
  prepare_sends();
}

// ---- sending ----

IoResult IoUringBackend::send(Channel& channel, std::span<const iovec> parts) noexcept {
  return with_reason(channel, EpollBackend::send(channel, parts));
}

// Why a connection broke is told to the first who asks and to nobody after it: here, to a receive.
IoResult IoUringBackend::with_reason(const Channel& channel, IoResult result) noexcept {
  if (result.error == EPIPE) {
    if (const Line* line = line_of(channel); line != nullptr && line->end && line->error != 0) {
      return IoResult::failure(line->error);
    }
  }
  return result;
}

bool IoUringBackend::prepare_send(Channel& channel) noexcept {
  const std::span<iovec> room = std::span(parts_).subspan(parts_used_);
  if (room.empty() || sends_out_ == kSendsPerPoll) {
    return false;
  }
  if (!channel.sink->owns_descriptor()) {
    send_at_collect(channel.id);  // Fails there, where the owner can be told.
    return true;
  }
  const std::span<const iovec> parts = static_cast<StreamSink*>(channel.sink)->parts_to_send(room);
  if (parts.empty()) {
    return true;
  }
  std::size_t size = 0;
  for (const iovec& part : parts) {
    size += part.iov_len;
  }
  if (size > kSendMax) {
    send_at_collect(channel.id);
    return true;
  }
  const std::uint64_t user_data = pack({sends_out_, ring_->prepared()}, Op::send);
  const auto prepare = [&] {
    if (parts.size() == 1) {
      return ring_->send(channel.fd, parts[0].iov_base, parts[0].iov_len, user_data);
    }
    msghdr& message = messages_[sends_out_];
    message = msghdr{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return ring_->send_message(channel.fd, &message, user_data);
  };
  if (!prepare_with_room(prepare)) {
    return false;
  }
  outgoing_[sends_out_++] = {channel.id, ring_->prepared() - 1, static_cast<std::int32_t>(size),
                             kUnsettled};
  parts_used_ += parts.size();
  return true;
}

void IoUringBackend::prepare_sends() noexcept {
  parts_used_ = 0;
  std::size_t done = 0;
  for (; done < sends_.size(); ++done) {
    Channel* channel = find(sends_[done]);
    if (channel == nullptr || !channel->send_due) {
      continue;
    }
    if (!prepare_send(*channel)) {
      break;
    }
    channel->send_due = false;
  }
  // What is left goes out with the next poll, which will not wait.
  sends_.erase(sends_.begin(), sends_.begin() + static_cast<std::ptrdiff_t>(done));
}

void IoUringBackend::send_at_collect(ChannelId id) noexcept {
  Channel* channel = find(id);
  if (channel == nullptr) {
    return;
  }
  channel->send_due = false;
  try {
    unsent_.push_back(id);
  } catch (const std::bad_alloc&) {
    want_send_ready(*channel);  // Reported by the kernel instead, when there is room.
  }
}

// A send ends in the call that submits it; its completion may be behind others that found the queue
// full. Only where the kernel takes no submissions is something left unsettled.
void IoUringBackend::hear_of_sends() noexcept {
  absorb();
  const auto settled = [this] {
    return std::all_of(outgoing_.begin(), outgoing_.begin() + sends_out_,
                       [](const OutgoingSend& send) { return send.result != kUnsettled; });
  };
  const bool silent = ring_->sends_report_failure_only();
  constexpr int kTries = 8;
  for (int i = 0; i < kTries; ++i) {
    if (ring_->unsubmitted() == 0 && (silent ? !ring_->has_overflow() : settled())) {
      return;
    }
    (void)ring_->submit();
    absorb();
  }
}

void IoUringBackend::finish_sends() noexcept {
  hear_of_sends();
  const std::uint32_t taken = ring_->prepared() - ring_->unsubmitted();
  const bool silent = ring_->sends_report_failure_only() && !ring_->has_overflow();
  const unsigned count = std::exchange(sends_out_, 0);
  for (unsigned i = 0; i < count; ++i) {
    const OutgoingSend& send = outgoing_[i];
    Channel* channel = find(send.id);
    if (channel == nullptr) {
      continue;
    }
    std::int32_t result = send.result;
    if (result == kUnsettled && static_cast<std::int32_t>(send.number - taken) >= 0) {
      result = -EAGAIN;  // Not taken: sent later.
    } else if (result == kUnsettled) {
      // Taken without a word. Where that does not mean success it is not sent again, ever.
      result = silent ? send.size : -EIO;
    }
    const IoResult outcome =
        result < 0 ? with_reason(*channel, IoResult::failure(-result)) : IoResult::success(result);
    if (!static_cast<StreamSink*>(channel->sink)->on_sent(outcome)) {
      continue;
    }
    send_at_collect(outgoing_[i].id);
  }
  if (ring_->unsubmitted() != 0) {
    move_to_this_thread();  // Nothing may be submitted later that points to memory of now.
  }
}

// ---- waiting ----

IoResult IoUringBackend::wait(std::int64_t timeout_ns) {
  if (ring_ == nullptr) {
    return EpollBackend::wait(only_looks_ ? 0 : timeout_ns);
  }
  woken_ = false;
  ++polls_;
  arm_own_polls();
  if (only_looks_) {
    timeout_ns = 0;
  }
  if (sends_out_ != 0 && !ring_->sends_report_failure_only()) {
    timeout_ns = 0;  // Each of them would end the wait.
  }
  timeout_ns = limit_by_refusals(timeout_ns);
  return choose_set() ? wait_in_set(timeout_ns) : wait_in_ring(timeout_ns);
}

// Where nothing but the set reports, a wait in the ring costs a second call, the look into the set.
// The ring gives notice to the set only while it does not poll it: each would wake the other.
bool IoUringBackend::choose_set() noexcept {
  if (set_reports_ >= kSetReportsForSet && !set_armed_ && ring_->unsubmitted() == 0 &&
      (in_set_ || enter_set())) {
    return true;
  }
  if (in_set_ || set_reports_ >= kSetReportsForSet) {
    leave_set();
    arm_own_polls();
  }
  return false;
}

bool IoUringBackend::enter_set() noexcept {
  if (!notices_) {
    try {
      notices_.emplace();
    } catch (const std::system_error&) {
      return false;
    }
    if (watch_notices(notices_->fd()) != 0) {
      notices_.reset();
      return false;
    }
  }
  in_set_ = ring_->give_notice_to(notices_->fd()) == 0;
  return in_set_;
}

void IoUringBackend::leave_set() noexcept {
  set_reports_ = 0;
  if (std::exchange(in_set_, false)) {
    (void)ring_->give_notice_to(-1);
  }
}

IoResult IoUringBackend::wait_in_set(std::int64_t timeout_ns) {
  // What came before gave its notice before, or none.
  const IoResult result = EpollBackend::wait(ring_->has_news() ? 0 : timeout_ns);
  if (ring_->has_news()) {
    note_outcome(ring_->submit());
  }
  return result;
}

// Sends are settled first; the next collect() goes on with another ring, or with epoll.
void IoUringBackend::note_outcome(const IoResult& result) noexcept {
  if (result.ok() || result.error == EINTR) {
    return;
  }
  if (result.error == EEXIST) {
    replace_ = true;
  } else {
    refused_ = true;
  }
}

IoResult IoUringBackend::wait_in_ring(std::int64_t timeout_ns) noexcept {
  IoResult result = IoResult::success(0);
  if (timeout_ns != 0) {
    // A send that fails or falls short reports, and so ends the wait; its rest is sent at once.
    result = ring_->submit_and_wait(1, timeout_ns);
  } else if (ring_->unsubmitted() != 0 || ring_->has_news()) {
    result = ring_->submit();
  }
  // What the kernel left in the queue would be read after its memory is gone.
  submit_all();
  note_outcome(result);
  return result.error == EINTR ? result : IoResult::success(0);
}

void IoUringBackend::count_set_reports() noexcept {
  if (!found_.empty() || woken_) {
    set_reports_ = 0;
  } else if (set_ready_ && set_reports_ < kSetReportsForSet) {
    ++set_reports_;
  }
}

void IoUringBackend::collect(ReadyQueue& ready) {
  if ((refused_ || replace_) && ring_ != nullptr) {
    move_to_this_thread();
  }
  if (ring_ != nullptr) {
    absorb();
    count_set_reports();
  }
  for (const ChannelId id : again_) {
    Channel* channel = find(id);
    Line* line = channel == nullptr ? nullptr : line_of(*channel);
    if (line != nullptr && line->pending()) {
      came(*channel, *line, kIoReadable);
    }
  }
  again_.clear();
  ready.reserve(found_.size() + unsent_.size());
  for (const ReadyEntry& entry : found_) {
    ready.push(entry);
  }
  found_.clear();
  for (const ChannelId id : unsent_) {
    ready.push(ReadyEntry::of_io(id, kIoSendDue));
  }
  unsent_.clear();
  const bool woken = woken_;
  if (ring_ == nullptr || in_set_) {
    EpollBackend::collect(ready);
  } else if (std::exchange(set_ready_, false) || has_refused()) {
    (void)EpollBackend::wait(0);
    EpollBackend::collect(ready);
  }
  woken_ = woken_ || woken;
}

// ---- what completed ----

void IoUringBackend::absorb() noexcept {
  const unsigned count = ring_->ready();
  for (unsigned i = 0; i < count; ++i) {
    take(ring_->at(i));
  }
  ring_->consume(count);
}

void IoUringBackend::take(const os::RingCompletion& completion) noexcept {
  const auto op = static_cast<Op>(op_of(completion.user_data));
  switch (op) {
    case Op::wake:
      wake_armed_ = false;
      woken_ = true;
      return;
    case Op::set:
      set_armed_ = false;
      set_ready_ = true;
      return;
    case Op::send: {
      const ChannelId which = channel_of(completion.user_data);
      // One that is behind others which found the queue full may be of an earlier poll.
      if (which.slot < sends_out_ && outgoing_[which.slot].number == which.generation) {
        outgoing_[which.slot].result = completion.result;
      }
      return;
    }
    case Op::cancel:  // What was cancelled reports for itself.
      return;
    default:
      break;
  }
  Channel* channel = find(channel_of(completion.user_data));
  Line* line = channel == nullptr ? nullptr : line_of(*channel);
  if (!completion.more) {
    --under_way_;
    if (line != nullptr) {
      line->armed &= static_cast<std::uint8_t>(~bit(op));
      line->cancelled &= static_cast<std::uint8_t>(~bit(op));
      mark_dirty(*channel);
    }
  }
  if (op == Op::receive) {
    take_received(line == nullptr ? nullptr : channel, completion);
  } else if (line != nullptr && completion.result != -ECANCELED &&
             channel->wants(op == Op::poll_in ? kWantReadable : kWantWritable)) {
    came(*channel, *line, op == Op::poll_in ? kIoReadable : kIoWritable);
  }
}

void IoUringBackend::came(Channel& channel, Line& line, std::uint32_t io_events) noexcept {
  // One event for both directions, as epoll has it: reading comes first and learns the reason.
  if (line.told_in == polls_ && line.told_at < found_.size() &&
      found_[line.told_at].channel == channel.id) {
    found_[line.told_at].io_events |= io_events;
    return;
  }
  try {
    found_.push_back(ReadyEntry::of_io(channel.id, io_events));
    line.told_in = polls_;
    line.told_at = static_cast<std::uint32_t>(found_.size() - 1);
  } catch (const std::bad_alloc&) {
    mark_dirty(channel);  // Found again by the next poll.
  }
}

void IoUringBackend::take_received(Channel* channel,
                                   const os::RingCompletion& completion) noexcept {
  if (channel == nullptr) {
    if (completion.has_buffer) {
      ring_->give_back(completion.buffer);
    }
    return;
  }
  Line& line = *line_of(*channel);
  if (completion.result > 0) {
    const auto size = static_cast<std::uint16_t>(completion.result);
    next_[completion.buffer] = kNoBuffer;
    filled_[completion.buffer] = size;
    if (line.first == kNoBuffer) {
      line.first = completion.buffer;
      line.offset = 0;
    } else {
      next_[line.last] = completion.buffer;
    }
    line.last = completion.buffer;
    line.run_length = size < os::IoRing::kBufferSize
                          ? std::uint8_t{0}
                          : static_cast<std::uint8_t>(line.run_length + 1);
    if (line.run_length >= kFullBuffersForPoll && !line.by_poll) {
      line.by_poll = true;
      line.run_length = 0;
      mark_dirty(*channel);
    }
    if (!channel->wants(kWantReadable)) {
      keep_bytes(line);
    }
  } else {
    if (completion.has_buffer) {
      ring_->give_back(completion.buffer);
    }
    switch (-completion.result) {
      case ECANCELED:
      case ENOBUFS:  // Others have them; given back when they are read.
      case EAGAIN:
      case EINTR:
        return;
      case EINVAL:
      case EOPNOTSUPP:
        line.by_poll =
            true;  // A kernel or a socket that cannot do it: reading shows what is wrong.
        return;
      default:
        line.end = true;
        line.error = -completion.result;
        break;
    }
  }
  came(*channel, line, kIoReadable);
}

// ---- what is pending for a channel ----

void IoUringBackend::look_again(Channel& channel) noexcept {
  const Line* line = line_of(channel);
  if (line == nullptr || !line->pending()) {
    return;
  }
  try {
    again_.push_back(channel.id);
  } catch (const std::bad_alloc&) {
    return;  // With the next change, then, or the next bytes.
  }
}

// A stream that is not read must not keep the ring's buffers from others.
void IoUringBackend::keep_bytes(Line& line) noexcept {
  if (line.first == kNoBuffer) {
    return;
  }
  try {
    if (line.kept == nullptr) {
      line.kept = std::make_unique<Kept>();
    }
    while (line.first != kNoBuffer) {
      const std::uint16_t id = line.first;
      line.kept->bytes.append(ring_->buffer(id) + line.offset,
                              static_cast<std::size_t>(filled_[id] - line.offset));
      line.offset = 0;
      line.first = next_[id];
      ring_->give_back(id);
    }
  } catch (const std::bad_alloc&) {
    return;  // They stay where they are.
  }
}

std::size_t IoUringBackend::copy_out(Line& line, char* to, std::size_t size) noexcept {
  std::size_t copied = 0;
  if (line.kept != nullptr && line.kept->taken < line.kept->bytes.size()) {
    Kept& kept = *line.kept;
    copied = std::min(size, kept.bytes.size() - kept.taken);
    std::memcpy(to, kept.bytes.data() + kept.taken, copied);
    kept.taken += copied;
    if (kept.taken == kept.bytes.size()) {
      std::string().swap(kept.bytes);
      kept.taken = 0;
    }
  }
  while (line.first != kNoBuffer && copied < size) {
    const std::uint16_t id = line.first;
    const std::size_t count =
        std::min(size - copied, static_cast<std::size_t>(filled_[id] - line.offset));
    std::memcpy(to + copied, ring_->buffer(id) + line.offset, count);
    copied += count;
    line.offset = static_cast<std::uint16_t>(line.offset + count);
    if (line.offset == filled_[id]) {
      line.offset = 0;
      line.first = next_[id];
      ring_->give_back(id);
    }
  }
  return copied;
}

void IoUringBackend::drop_pending(Line& line) noexcept {
  // In a forked child the buffers are the parent's to count.
  while (line.first != kNoBuffer && ring_ != nullptr && !hands_off()) {
    const std::uint16_t id = line.first;
    line.first = next_[id];
    ring_->give_back(id);
  }
  line.kept.reset();
  line.end = false;
}

void IoUringBackend::receive(Channel& channel) {
  const Line* line = line_of(channel);
  if (line != nullptr && (line->has_bytes() || line->end)) {
    receive_pending(channel);
  } else if (line == nullptr || ring_ == nullptr) {
    EpollBackend::receive(channel);
  } else if ((line->armed & bit(Op::receive)) == 0) {
    receive_by_call(channel);
  }
}

void IoUringBackend::receive_pending(Channel& channel) {
  const ChannelId id = channel.id;
  read_for(channel, [this](const Channel& still, const ReceiveBuffer& room) {
    Line* line = line_of(still);
    if (line != nullptr && line->has_bytes()) {
      const std::size_t count = copy_out(*line, static_cast<char*>(room.data), room.size);
      return IoResult::success(static_cast<std::int64_t>(count));
    }
    if (line == nullptr || !line->end) {
      return IoResult::failure(EAGAIN);
    }
    line->end = false;
    return line->error == 0 ? IoResult::success(0)
                            : IoResult::failure(std::exchange(line->error, 0));
  });
  if (Channel* still = find(id); still != nullptr && still->wants(kWantReadable)) {
    note_change(*still);  // What is left comes with the next poll.
  }
}

void IoUringBackend::receive_by_call(Channel& channel) {
  read_for(channel, [this](const Channel& still, const ReceiveBuffer& room) {
    const IoResult result = os::receive(still.fd, room.data, room.size);
    if (Line* line = line_of(still); line != nullptr && result.ok()) {
      const bool small = result.value < static_cast<std::int64_t>(os::IoRing::kBufferSize);
      line->run_length = small ? static_cast<std::uint8_t>(line->run_length + 1) : std::uint8_t{0};
      if (line->run_length >= kSmallReadsForRing) {
        line->by_poll = false;
        line->run_length = 0;
      }
    }
    return result;
  });
}

}  // namespace cpploop

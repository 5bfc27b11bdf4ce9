#include "core/net/stream_socket.h"

#include <array>
#include <cassert>
#include <cerrno>
#include <climits>
#include <new>
#include <utility>

#include "core/engine.h"

namespace cpploop {

StreamSocket::StreamSocket(Engine& engine, UniqueFd&& fd, StreamEvents& events)
    : engine_(engine), events_(events) {
  engine_.backend().attach(channel_, fd.get(), Channel::Kind::stream, this);
  fd_ = std::move(fd);
}

StreamSocket::~StreamSocket() {
  if (in_flush_list_) {
    engine_.cancel_flush(*this);
  }
  engine_.backend().detach(channel_);
  drop_queue();
}

void StreamSocket::start_reading() noexcept {
  if (is_reading()) {
    engine_.backend().start_receive(channel_);
  }
}

void StreamSocket::stop_reading_at_end() noexcept { engine_.backend().stop_receive(channel_); }

bool StreamSocket::pause_reading() noexcept {
  if (!is_reading()) {
    return false;
  }
  paused_ = true;
  engine_.backend().stop_receive(channel_);
  return true;
}

bool StreamSocket::resume_reading() noexcept {
  if (closing_ || !paused_) {
    return false;
  }
  paused_ = false;
  engine_.backend().start_receive(channel_);
  return true;
}

ReceiveBuffer StreamSocket::receive_buffer() {
  // What an earlier callback of the turn wrote goes first: of a peer that is gone the write is to
  // hear, as it would have when it was made.
  flush();
  // The kernel being full, the owner may have been told to pause, and have paused reading or
  // closed.
  if (lost_count_ != 0 || !channel_.wants(kWantReadable)) {
    return {};
  }
  if (!owns_descriptor()) {
    events_.on_receive_error(EBADF);
    return {};
  }
  const ReceiveBuffer buffer = events_.receive_buffer();
  if (buffer.size != 0 && !owns_descriptor()) {
    events_.on_bytes(0);  // Closed by whoever made room: the buffer goes back unused.
    events_.on_receive_error(EBADF);
    return {};
  }
  receive_capacity_ = buffer.size;
  return buffer;
}

void StreamSocket::on_received(IoResult result) {
  if (result.ok() && result.value > 0) {
    const auto count = static_cast<std::size_t>(result.value);
    adapt_receive_size(count);
    engine_.metrics().bytes_received.add(count);
    events_.on_bytes(count);
    return;
  }
  events_.on_bytes(0);
  if (result.ok()) {
    events_.on_end_of_stream();
  } else if (!result.would_block()) {
    events_.on_receive_error(result.error);
  }
}

void StreamSocket::adapt_receive_size(std::size_t received) noexcept {
  if (received >= receive_capacity_) {
    receive_size_ = std::min(receive_size_ * 2, kReceiveSizeMax);
    small_reads_ = 0;
  } else if (received * 4 < receive_size_) {
    if (++small_reads_ >= 2) {
      receive_size_ = std::max(receive_size_ / 2, kReceiveSizeMin);
      small_reads_ = 0;
    }
  } else {
    small_reads_ = 0;
  }
}

bool StreamSocket::note_write() noexcept {
  const std::uint64_t callback = engine_.callback_serial();
  if (callback != last_write_callback_) {
    // The previous writing callback is over: one with two writes strengthens the habit, one with a
    // single write ends it.
    habit_ = writes_in_callback_ < 2
                 ? 0
                 : std::min<std::uint8_t>(static_cast<std::uint8_t>(habit_ + 1), kHabitLearned);
    quick_ = engine_.holding().slow_since(last_write_callback_)
                 ? 0
                 : std::min<std::uint8_t>(static_cast<std::uint8_t>(quick_ + 1), kQuickLearned);
    last_write_callback_ = callback;
    writes_in_callback_ = 0;
    engine_.note_writer();
  }
  return ++writes_in_callback_ == 1;
}

bool StreamSocket::may_hold() const noexcept {
  return quick_ == kQuickLearned && engine_.may_wait_for_turn();
}

bool StreamSocket::sends_at_once(std::size_t size) noexcept {
  if (!engine_.in_callback()) {
    return queue_.empty();
  }
  const bool first = note_write();
  if (!queue_.empty()) {
    return false;
  }
  // Nothing is kept back that somebody could close the descriptor before.
  return (first && habit_ != kHabitLearned && (size > kHeldMax || !may_hold())) ||
         events_.shares_descriptor();
}

std::size_t StreamSocket::begin_write(const void* data, std::size_t size) {
  if (!sends_at_once(size)) {
    return 0;
  }
  const iovec part{const_cast<void*>(data), size};
  const IoResult result = send({&part, 1});
  if (result.ok()) {
    const auto sent = static_cast<std::size_t>(result.value);
    engine_.metrics().bytes_sent.add(sent);
    blocked_ = sent < size;
    return sent;
  }
  if (result.would_block()) {
    blocked_ = true;
    return 0;
  }
  events_.on_send_error(result.error);
  return size;
}

void StreamSocket::queue(const void* data, std::size_t size, WriteQueue::Owner owner) {
  queue_.push(data, size, owner);
}

void StreamSocket::end_write() {
  if (queue_.empty()) {
    return;
  }
  if (blocked_) {
    wait_for_kernel();
    maybe_pause_writing();
  } else if (!engine_.in_callback() || queue_.size_bytes() >= kGatherLimit) {
    flush();
  } else if (!in_flush_list_) {
    try {
      engine_.hold_write(*this,
                         may_hold() ? Engine::Until::turn_ends : Engine::Until::callback_ends);
    } catch (const std::bad_alloc&) {
      flush();  // No memory to put it off.
    }
  }
}

void StreamSocket::flush_unless_held() {
  if (quick_ != kQuickLearned || engine_.last_of_turn()) {
    flush();
  }
}

void StreamSocket::flush() {
  if (queue_.empty() || blocked_) {
    return;
  }
  send_queue();
  if (lost_count_ == 0 && !queue_.empty()) {
    maybe_pause_writing();
  }
}

IoResult StreamSocket::send(std::span<const iovec> parts) noexcept {
  return owns_descriptor() ? engine_.backend().send(channel_, parts) : IoResult::failure(EBADF);
}

IoResult StreamSocket::shut_down() noexcept {
  return owns_descriptor() ? os::shutdown_write(fd_.get()) : IoResult::failure(EBADF);
}

// Sends from the front until the queue is empty or the kernel takes no more.
void StreamSocket::send_queue() {
  std::array<iovec, IOV_MAX> parts;  // Filled only as far as it is used.
  while (!queue_.empty()) {
    const auto gathered = queue_.gather(parts);
    std::size_t offered = 0;
    for (const iovec& part : gathered) {
      offered += part.iov_len;
    }
    const IoResult result = send(gathered);
    if (!result.ok() && !result.would_block()) {
      drop_queue();
      events_.on_send_error(result.error);
      return;
    }
    const std::size_t sent = result.ok() ? static_cast<std::size_t>(result.value) : 0;
    engine_.metrics().bytes_sent.add(sent);
    queue_.advance(sent, [this](WriteQueue::Owner owner) { events_.drop_owner(owner); });
    if (sent < offered) {
      blocked_ = true;
      wait_for_kernel();
      return;
    }
  }
}

void StreamSocket::wait_for_kernel() noexcept { engine_.backend().want_send_ready(channel_); }

void StreamSocket::on_send_ready() {
  if (lost_count_ != 0) {
    return;
  }
  blocked_ = false;
  send_queue();
  if (lost_count_ != 0) {
    return;
  }
  if (queue_.empty()) {
    engine_.backend().stop_send_ready(channel_);
  }
  // What the owner is told here may make it write, close or abort. Its writes go out before
  // anything is concluded: a closing connection waits for nothing but this queue.
  maybe_resume_writing();
  flush();
  if (lost_count_ != 0 || !queue_.empty()) {
    return;
  }
  events_.on_drained();
  flush();
  if (lost_count_ != 0 || !queue_.empty()) {
    return;
  }
  if (closing_) {
    ++lost_count_;
    events_.on_closed_after_flush();
  } else if (eof_) {
    if (const IoResult result = shut_down(); !result.ok()) {
      events_.on_shutdown_error(result.error);
    }
  }
}

std::span<const iovec> StreamSocket::parts_to_send(std::span<iovec> room) noexcept {
  return blocked_ || lost_count_ != 0 ? std::span<const iovec>() : queue_.gather(room);
}

bool StreamSocket::on_sent(IoResult result) noexcept {
  if (result.ok()) {
    const auto sent = std::min(static_cast<std::size_t>(result.value), queue_.size_bytes());
    engine_.metrics().bytes_sent.add(sent);
    queue_.advance(sent, [this](WriteQueue::Owner owner) { events_.drop_owner(owner); });
    return !queue_.empty();
  }
  if (!result.would_block() && result.error != EINTR) {
    drop_queue();
    send_error_ = result.error;
  }
  return true;
}

void StreamSocket::on_send_due() {
  if (const int error = std::exchange(send_error_, 0); error != 0 && lost_count_ == 0) {
    drop_queue();  // What was written after the failure and before it was known.
    events_.on_send_error(error);
    return;
  }
  flush();
}

void StreamSocket::retry_send() {
  if (closing_) {
    // Of an error its owner hears here. That the queue is empty is concluded at the next poll.
    blocked_ = false;
    send_queue();
    if (lost_count_ == 0) {
      blocked_ = true;
      wait_for_kernel();
    }
    return;
  }
  on_send_ready();
  if (lost_count_ == 0) {
    maybe_pause_writing();
  }
}

void StreamSocket::maybe_pause_writing() {
  if (!writing_paused_ && queue_.size_bytes() > high_water_) {
    writing_paused_ = true;
    events_.on_pause_writing();
  }
}

void StreamSocket::maybe_resume_writing() {
  if (writing_paused_ && queue_.size_bytes() <= low_water_) {
    writing_paused_ = false;
    events_.on_resume_writing();
  }
}

void StreamSocket::set_limits(std::size_t high, std::size_t low) {
  flush();
  high_water_ = high;
  low_water_ = low;
  maybe_pause_writing();
}

IoResult StreamSocket::write_eof() {
  if (closing_ || eof_) {
    return IoResult::success(0);
  }
  flush();
  if (closing_) {
    return IoResult::success(0);
  }
  eof_ = true;
  return queue_.empty() ? shut_down() : IoResult::success(0);
}

bool StreamSocket::close() {
  if (closing_) {
    return false;
  }
  if (send_error_ != 0) {
    on_send_due();  // A send with the poll has failed, and nobody has been told yet.
  }
  flush();
  if (closing_) {
    return false;
  }
  closing_ = true;
  engine_.backend().stop_receive(channel_);
  const bool nothing_left = queue_.empty();
  if (nothing_left) {
    ++lost_count_;
    engine_.backend().stop_send_ready(channel_);
  }
  leave_kernel();
  return nothing_left;
}

bool StreamSocket::force_close() {
  if (lost_count_ != 0) {
    return false;
  }
  drop_queue();
  engine_.backend().stop_send_ready(channel_);
  if (!closing_) {
    closing_ = true;
    engine_.backend().stop_receive(channel_);
  }
  leave_kernel();
  ++lost_count_;
  return true;
}

// Not put off to the next poll: whoever shares the descriptor may close it once the socket is
// closing, and its number would be another file's by then.
void StreamSocket::leave_kernel() noexcept { engine_.backend().apply_change(channel_); }

void StreamSocket::drop_queue() {
  queue_.clear([this](WriteQueue::Owner owner) { events_.drop_owner(owner); });
  blocked_ = false;
}

UniqueFd StreamSocket::take_fd() noexcept {
  engine_.backend().detach(channel_);
  return std::move(fd_);
}

}  // namespace cpploop

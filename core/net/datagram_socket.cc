#include "core/net/datagram_socket.h"

#include <cerrno>
#include <new>
#include <utility>

#include "core/engine.h"

namespace cpploop {

DatagramSocket::DatagramSocket(Engine& engine, UniqueFd&& fd, Sizes sizes, std::size_t header,
                               DatagramEvents& events)
    : engine_(engine), events_(events), header_(header) {
  engine_.backend().attach(channel_, fd.get(), Channel::Kind::datagram, this);
  fd_ = std::move(fd);
  channel_.batch = sizes == Sizes::any ? 1 : os::DatagramBatch::kMessages;
}

DatagramSocket::~DatagramSocket() {
  engine_.backend().detach(channel_);
  drop_queue();
}

// ---- reading ----

void DatagramSocket::start_reading() noexcept {
  started_ = true;
  if (is_reading() && held_.empty()) {
    engine_.backend().start_receive(channel_);
  }
}

bool DatagramSocket::pause_reading() noexcept {
  if (!is_reading()) {
    return false;
  }
  paused_ = true;
  engine_.backend().stop_receive(channel_);
  return true;
}

bool DatagramSocket::resume_reading() noexcept {
  if (closing_ || !paused_) {
    return false;
  }
  paused_ = false;
  started_ = true;
  if (held_.empty()) {
    engine_.backend().start_receive(channel_);
  } else {
    schedule_held();
  }
  return true;
}

bool DatagramSocket::on_datagrams(std::span<const Datagram> datagrams) {
  for (const Datagram& datagram : datagrams) {
    engine_.metrics().bytes_received.add(datagram.size);
  }
  const std::size_t delivered = deliver(datagrams);
  if (delivered < datagrams.size() && !closing_ && !engine_.forked()) {
    keep(datagrams.subspan(delivered));
  }
  return is_reading() && held_.empty() && engine_.may_go_on();
}

void DatagramSocket::on_receive_error(int error) {
  if (error == EBADF) {
    engine_.backend().stop_receive(channel_);  // Gone for good: to ask again would be for ever.
  }
  events_.on_receive_error(error);
}

// Delivers until one of them makes the rest wait, or superfluous; how many were delivered.
std::size_t DatagramSocket::deliver(std::span<const Datagram> datagrams) {
  std::size_t count = 0;
  do {
    events_.on_datagram(datagrams[count]);
    ++count;
  } while (count < datagrams.size() && is_reading() && engine_.may_go_on());
  return count;
}

// The kernel has given them away already, and their memory is the next batch's: they wait in copies
// of their own, and the socket receives nothing before they are delivered.
void DatagramSocket::keep(std::span<const Datagram> datagrams) noexcept {
  try {
    held_.reserve(datagrams.size());
    for (const Datagram& datagram : datagrams) {
      held_.push_back({*datagram.from, std::string(datagram.data, datagram.size)});
    }
  } catch (const std::bad_alloc&) {
    // Datagrams may get lost on any way, for want of memory on this one.
    dropped_ += datagrams.size() - held_.size();
  }
  if (held_.empty()) {
    return;
  }
  engine_.backend().stop_receive(channel_);
  if (!paused_) {
    schedule_held();
  }
}

void DatagramSocket::schedule_held() noexcept {
  held_asked_ = engine_.metrics().turns.get();
  if (held_scheduled_) {
    return;
  }
  try {
    engine_.push_with_next_events(*this);
    held_scheduled_ = true;
    events_.hold();
  } catch (const std::bad_alloc&) {
    // As above. What the kernel has is not lost.
    held_.clear();
    engine_.backend().start_receive(channel_);
  }
}

void DatagramSocket::run() {
  held_scheduled_ = false;
  if (held_asked_ == engine_.metrics().turns.get()) {
    schedule_held();  // Asked for since this was queued: an event of the next turn.
  } else {
    deliver_held();
  }
  events_.release();
}

void DatagramSocket::drop() noexcept {
  held_scheduled_ = false;
  events_.release();
}

void DatagramSocket::deliver_held() {
  std::vector<Held> held = std::exchange(held_, {});
  std::size_t count = 0;
  while (count < held.size() && is_reading() && (count == 0 || engine_.may_go_on())) {
    const Held& next = held[count];
    events_.on_datagram({next.bytes.data(), next.bytes.size(), &next.from});
    ++count;
  }
  if (closing_ || engine_.forked()) {
    return;
  }
  held.erase(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(count));
  held_ = std::move(held);
  if (paused_) {
    return;
  }
  if (held_.empty()) {
    engine_.backend().start_receive(channel_);
  } else {
    schedule_held();
  }
}

// ---- sending ----

IoResult DatagramSocket::send(const void* data, std::size_t size,
                              const os::SocketAddress* to) noexcept {
  if (!owns_descriptor()) {
    return IoResult::failure(EBADF);
  }
  const IoResult result = engine_.backend().send_datagram(channel_, data, size, to);
  if (result.ok()) {
    engine_.metrics().bytes_sent.add(size);
  }
  return result;
}

void DatagramSocket::wait_for_kernel() noexcept { engine_.backend().want_send_ready(channel_); }

void DatagramSocket::queue(const QueuedDatagram& datagram) {
  queue_.push_back(datagram);
  queued_size_ += datagram.size + header_;
}

DatagramSent DatagramSocket::send_item(const QueuedDatagram& item) {
  if (item.addressed) {
    return events_.send_addressed(item.owner);
  }
  const IoResult result = send(item.data, item.size, nullptr);
  if (result.ok()) {
    return DatagramSent::done;
  }
  if (result.would_block()) {
    return DatagramSent::full;
  }
  events_.on_send_error(result.error);
  return DatagramSent::failed;
}

// False when a datagram met an error: the rest waits for the next turn.
bool DatagramSocket::send_queue() {
  while (!queue_.empty()) {
    // It leaves the queue first, so that whoever is told of its failure finds the queue without it.
    const QueuedDatagram item = queue_.pop_front();
    queued_size_ -= item.size + header_;
    const DatagramSent sent = send_item(item);
    if (sent == DatagramSent::full && lost_count_ == 0) {
      put_back(item);
      return true;
    }
    events_.drop_owner(item.owner);
    if (sent != DatagramSent::done || lost_count_ != 0) {
      return false;
    }
  }
  return true;
}

void DatagramSocket::put_back(const QueuedDatagram& item) {
  try {
    queue_.push_front(item);
    queued_size_ += item.size + header_;
  } catch (const std::bad_alloc&) {
    events_.drop_owner(item.owner);
  }
}

void DatagramSocket::on_send_ready() {
  if (lost_count_ != 0 || !send_queue()) {
    return;
  }
  // What the owner is told here may make it send, close or abort.
  maybe_resume_writing();
  if (lost_count_ != 0 || !queue_.empty()) {
    return;
  }
  engine_.backend().stop_send_ready(channel_);
  if (closing_) {
    ++lost_count_;
    leave_kernel();
    events_.on_closed_after_flush();
  }
}

void DatagramSocket::maybe_pause_writing() {
  if (!writing_paused_ && queued_size_ > high_water_) {
    writing_paused_ = true;
    events_.on_pause_writing();
  }
}

void DatagramSocket::maybe_resume_writing() {
  if (writing_paused_ && queued_size_ <= low_water_) {
    writing_paused_ = false;
    events_.on_resume_writing();
  }
}

void DatagramSocket::set_limits(std::size_t high, std::size_t low) {
  high_water_ = high;
  low_water_ = low;
  maybe_pause_writing();
}

// ---- closing ----

bool DatagramSocket::close() {
  if (closing_) {
    return false;
  }
  closing_ = true;
  held_.clear();
  engine_.backend().stop_receive(channel_);
  const bool nothing_left = queue_.empty();
  if (nothing_left) {
    ++lost_count_;
    engine_.backend().stop_send_ready(channel_);
  }
  leave_kernel();
  return nothing_left;
}

bool DatagramSocket::force_close() {
  if (lost_count_ != 0) {
    return false;
  }
  ++lost_count_;
  closing_ = true;
  held_.clear();
  engine_.backend().stop_send_ready(channel_);
  engine_.backend().stop_receive(channel_);
  leave_kernel();
  drop_queue();
  return true;
}

// Not put off to the next poll: whoever shares the descriptor may close it once the socket is
// closing, and its number would be another file's by then.
void DatagramSocket::leave_kernel() noexcept { engine_.backend().apply_change(channel_); }

void DatagramSocket::drop_queue() {
  queued_size_ = 0;
  while (!queue_.empty()) {
    events_.drop_owner(queue_.pop_front().owner);
  }
}

UniqueFd DatagramSocket::take_fd() noexcept {
  engine_.backend().detach(channel_);
  return std::move(fd_);
}

}  // namespace cpploop

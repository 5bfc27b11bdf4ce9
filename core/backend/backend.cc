#include "core/backend/backend.h"

#include <cassert>
#include <cerrno>
#include <utility>

namespace cpploop {

void Backend::attach(Channel& channel, int fd, Channel::Kind kind, Sink* sink) {
  assert(!channel.attached());
  assert(fd >= 0);
  std::uint32_t index = free_slot_;
  if (index == kNoSlot) {
    index = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    free_slot_ = slots_[index].next_free;
  }
  Slot& slot = slots_[index];
  slot.channel = &channel;
  channel = Channel{};
  channel.fd = fd;
  channel.kind = kind;
  channel.sink = sink;
  if (kind != Channel::Kind::readiness && kind != Channel::Kind::process) {
    // What others own and merely have watched may change hands.
    channel.ticket = ledger::watch(fd);
    os::set_no_sigpipe(fd);
  }
  channel.id = ChannelId{index, slot.generation};
  ++attached_;
}

void Backend::detach(Channel& channel) noexcept {
  if (!channel.attached()) {
    return;
  }
  set_wanted(channel, 0);
  forget(channel);
  Slot& slot = slots_[channel.id.slot];
  assert(slot.channel == &channel);
  slot.channel = nullptr;
  ++slot.generation;
  slot.next_free = free_slot_;
  free_slot_ = channel.id.slot;
  channel = Channel{};
  --attached_;
}

void Backend::set_wanted(Channel& channel, std::uint8_t wanted) noexcept {
  if (channel.wanted == 0 && wanted != 0) {
    ++watched_;
  } else if (channel.wanted != 0 && wanted == 0) {
    --watched_;
  }
  channel.wanted = wanted;
}

void Backend::ask(Channel& channel, Wanted what) noexcept {
  if (what == kWantReadable) {
    channel.readable_since = polls_;
  } else {
    channel.writable_since = polls_;
  }
  set_wanted(channel, static_cast<std::uint8_t>(channel.wanted | what));
}

void Backend::unask(Channel& channel, Wanted what) noexcept {
  set_wanted(channel, static_cast<std::uint8_t>(channel.wanted & ~what));
}

void Backend::start_receive(Channel& channel) noexcept {
  assert(channel.kind == Channel::Kind::stream || channel.kind == Channel::Kind::datagram);
  ask(channel, kWantReadable);
  note_change(channel);
}

void Backend::stop_receive(Channel& channel) noexcept {
  if (channel.wants(kWantReadable)) {
    unask(channel, kWantReadable);
    note_change(channel);
  }
}

void Backend::want_send_ready(Channel& channel) noexcept {
  if (!channel.wants(kWantWritable)) {
    ask(channel, kWantWritable);
    note_change(channel);
  }
}

void Backend::stop_send_ready(Channel& channel) noexcept {
  if (channel.wants(kWantWritable)) {
    unask(channel, kWantWritable);
    note_change(channel);
  }
}

void Backend::start_accept(Channel& channel, std::uint16_t batch) noexcept {
  assert(channel.kind == Channel::Kind::accept);
  channel.batch = batch;
  ask(channel, kWantReadable);
  note_change(channel);
}

void Backend::stop_accept(Channel& channel) noexcept {
  if (channel.wants(kWantReadable)) {
    unask(channel, kWantReadable);
    note_change(channel);
  }
}

int Backend::watch(Channel& channel, Wanted what) noexcept {
  assert(channel.kind == Channel::Kind::readiness || channel.kind == Channel::Kind::process);
  const bool had = channel.wants(what);
  channel.edge = channel.resting = false;
  ask(channel, what);
  const int error = change_now(channel);
  if (error != 0 && !had) {
    unask(channel, what);
  }
  return error;
}

void Backend::unwatch(Channel& channel, Wanted what) noexcept {
  if (channel.wants(what)) {
    unask(channel, what);
    // A failure here means that the descriptor was closed behind our back: then there is nothing
    // left to tell the kernel.
    (void)change_now(channel);
  }
}

int Backend::watch_after_read(Channel& channel) noexcept {
  if (!has_edges_ || channel.wanted != 0) {
    return watch(channel, kWantReadable);
  }
  channel.edge = true;
  ask(channel, kWantReadable);
  // A read that found nothing although there was something is a fault of a test's making: then the
  // kernel has to look again.
  const bool known = std::exchange(channel.resting, false) && !ledger::kKept;
  const int error = known ? 0 : change_now(channel);
  if (error != 0) {
    channel.edge = false;
    unask(channel, kWantReadable);
  }
  return error;
}

void Backend::rest(Channel& channel) noexcept {
  if (channel.edge && channel.wanted == kWantReadable) {
    unask(channel, kWantReadable);
    channel.resting = true;
  } else {
    unwatch(channel, kWantReadable);
  }
}

// Whether an event is still wanted: what ran since it was collected may have changed that.
bool Backend::is_due(const Channel& channel, Wanted what) const noexcept {
  const std::uint64_t since =
      what == kWantReadable ? channel.readable_since : channel.writable_since;
  if (!channel.wants(what) || since == polls_) {
    return false;
  }
  if constexpr (ledger::kKept) {
    // Whoever knows that the number is lost will say so, and will not use it.
    if (channel.sink->owns_descriptor()) {
      ledger::delivers(channel.fd, channel.ticket);
    }
  }
  return true;
}

void Backend::dispatch(ChannelId id, std::uint32_t io_events) {
  Channel* channel = find(id);
  if (channel == nullptr) {
    return;
  }
  if (std::exchange(channel->resting, false)) {
    (void)change_now(*channel);
    return;
  }
  Sink* const sink = channel->sink;
  sink->hold();
  if ((io_events & kIoReadable) != 0 && is_due(*channel, kWantReadable)) {
    switch (channel->kind) {
      case Channel::Kind::stream:
        receive(*channel);
        break;
      case Channel::Kind::datagram:
        if (sink->owns_descriptor()) {
          receive_datagrams(*channel);
        } else {
          static_cast<DatagramSink*>(sink)->on_receive_error(EBADF);
        }
        break;
      case Channel::Kind::accept:
        if (sink->owns_descriptor()) {
          accept(*channel);
        } else {
          static_cast<AcceptSink*>(sink)->on_accept_error(EBADF);
        }
        break;
      case Channel::Kind::readiness:
      case Channel::Kind::process:
        static_cast<ReadinessSink*>(sink)->on_readable();
        break;
      case Channel::Kind::connect:
      case Channel::Kind::none:
        break;
    }
  }
  // What ran may have detached the channel, or given its slot to another: look it up again.
  channel = find(id);
  if (channel != nullptr && (io_events & kIoWritable) != 0 && is_due(*channel, kWantWritable)) {
    switch (channel->kind) {
      case Channel::Kind::stream:
        static_cast<StreamSink*>(sink)->on_send_ready();
        break;
      case Channel::Kind::datagram:
        static_cast<DatagramSink*>(sink)->on_send_ready();
        break;
      case Channel::Kind::connect:
        finish_connect(*channel);
        break;
      case Channel::Kind::readiness:
        static_cast<ReadinessSink*>(sink)->on_writable();
        break;
      case Channel::Kind::process:
      case Channel::Kind::accept:
      case Channel::Kind::none:
        break;
    }
  }
  if ((io_events & kIoSendDue) != 0 && find(id) != nullptr) {
    static_cast<StreamSink*>(sink)->on_send_due();
  }
  sink->release();
}

void Backend::send_with_poll(Channel& channel) {
  assert(channel.kind == Channel::Kind::stream);
  if (!channel.send_due) {
    sends_.push_back(channel.id);
    channel.send_due = true;
  }
}

void Backend::send_what_is_due() {
  // What runs here may write elsewhere; outside of callbacks that goes out at once.
  std::vector<ChannelId> due = std::exchange(sends_, {});
  for (const ChannelId id : due) {
    if (Channel* channel = find(id); channel != nullptr) {
      channel->send_due = false;
      dispatch(id, kIoSendDue);
    }
  }
}

void Backend::finish_connect(Channel& channel) {
  const int error = os::pending_error(channel.fd);
  set_wanted(channel, 0);
  note_change(channel);
  static_cast<ConnectSink*>(channel.sink)->on_connected(error);
}

}  // namespace cpploop

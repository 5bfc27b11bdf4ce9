#include "core/backend/readiness_backend.h"

#include <algorithm>
#include <cerrno>
#include <new>

#include "core/os/pipe_ops.h"

namespace cpploop {
namespace {

// How often a kernel that goes on refusing to watch a descriptor is asked: without a rest the loop
// would do nothing else.
constexpr std::int64_t kRestAfterRefusalNs = 5'000'000;

}  // namespace

IoResult ReadinessBackend::send(Channel& channel, std::span<const iovec> parts) noexcept {
  if (parts.size() == 1) {
    return os::send(channel.fd, parts[0].iov_base, parts[0].iov_len);
  }
  return os::send_vector(channel.fd, parts.data(), parts.size());
}

IoResult ReadinessBackend::read(int fd, std::span<const iovec> parts) noexcept {
  return os::read_vector(fd, parts);
}

IoResult ReadinessBackend::write(int fd, std::span<const iovec> parts) noexcept {
  return os::write_vector(fd, parts);
}

IoResult ReadinessBackend::send_datagram(Channel& channel, const void* data, std::size_t size,
                                         const os::SocketAddress* to) noexcept {
  return os::send_datagram(channel.fd, data, size, to);
}

int ReadinessBackend::start_connect(Channel& channel, const os::SocketAddress& address) {
  const IoResult result = os::connect(channel.fd, address);
  if (result.error != EINPROGRESS) {
    return result.error;
  }
  set_wanted(channel, kWantWritable);
  channel.writable_since = polls_;
  const int error = change_now(channel);
  return error == 0 ? EINPROGRESS : error;
}

void ReadinessBackend::note_change(Channel& channel) noexcept {
  if (channel.dirty || channel.wanted == channel.registered || abandoned_) {
    return;
  }
  if (blocking_ && change_now(channel) == 0) {
    return;  // Another thread's wish: the wait that is under way is to hear of it.
  }
  try {
    dirty_.push_back(channel.id);
    channel.dirty = true;
  } catch (const std::bad_alloc&) {
    // No memory to put it off: tell the kernel now.
    (void)change_now(channel);
  }
}

int ReadinessBackend::change_now(Channel& channel) noexcept {
  if (hands_off() || (channel.wanted == 0 && channel.registered == 0)) {
    return 0;
  }
  int error = 0;
  if (channel.wanted != 0) {
    // A number that is lost may be watched for somebody else by now.
    error = channel.sink->owns_descriptor() ? register_now(channel) : EBADF;
    if (error == 0) {
      note_holder(channel);
    }
  } else if (is_holder(channel)) {
    error = remove_now(channel);
  }
  if (error == 0 || channel.wanted == 0) {
    channel.registered = channel.wanted;
  }
  return error;
}

void ReadinessBackend::forget(Channel& channel) noexcept {
  // wanted is 0 here. Removed explicitly, although closing usually does it: a forked child that
  // holds a copy of the descriptor would keep the registration alive, and level-triggered events of
  // nobody would spin the loop.
  if (channel.registered != 0) {
    (void)change_now(channel);
  }
}

bool ReadinessBackend::is_holder(const Channel& channel) const noexcept {
  if (channel.kind == Channel::Kind::process) {
    return true;  // Not a descriptor's number.
  }
  const auto index = static_cast<std::size_t>(channel.fd);
  return index >= holders_.size() || holders_[index] == channel.id;
}

void ReadinessBackend::note_holder(const Channel& channel) noexcept {
  if (channel.kind == Channel::Kind::process) {
    return;
  }
  const auto index = static_cast<std::size_t>(channel.fd);
  if (index >= holders_.size()) {
    try {
      holders_.resize(index + 1);
    } catch (const std::bad_alloc&) {
      return;  // A number beyond the table counts as the channel's that asks.
    }
  }
  holders_[index] = channel.id;
}

void ReadinessBackend::apply_changes() {
  for (const ChannelId id : dirty_) {
    Channel* channel = find(id);
    if (channel == nullptr || !channel->dirty) {
      continue;
    }
    if (channel->wanted != channel->registered && change_now(*channel) != 0) {
      // Left unregistered it would stall unseen. Treat it as ready instead: the operation itself
      // then tells the owner what is wrong with the descriptor, or finds that nothing is.
      failed_.push_back(id);
    }
    channel->dirty = false;  // Last: when memory for `failed_` runs out, the next poll tries again.
  }
  dirty_.clear();
  refused_polls_ = failed_.empty() ? 0 : refused_polls_ + 1;
}

void ReadinessBackend::refuse(const Channel& channel) noexcept {
  try {
    failed_.push_back(channel.id);
  } catch (const std::bad_alloc&) {
    return;  // It is told at its next change.
  }
}

void ReadinessBackend::collect_refused(ReadyQueue& ready) {
  for (const ChannelId id : failed_) {
    ready.push(ReadyEntry::of_io(id, kIoReadable | kIoWritable));
    if (Channel* channel = find(id); channel != nullptr) {
      note_change(*channel);
    }
  }
  failed_.clear();
}

// What the kernel will not watch is tried at once the first time, and every now and then after
// that.
std::int64_t ReadinessBackend::limit_by_refusals(std::int64_t timeout_ns) const noexcept {
  if (failed_.empty()) {
    return timeout_ns;
  }
  if (refused_polls_ == 1) {
    return 0;
  }
  return timeout_ns < 0 ? kRestAfterRefusalNs : std::min(timeout_ns, kRestAfterRefusalNs);
}

void ReadinessBackend::receive(Channel& channel) {
  read_for(channel, [](const Channel& still, const ReceiveBuffer& room) {
    return os::receive(still.fd, room.data, room.size);
  });
}

bool ReadinessBackend::deliver_datagrams(ChannelId id, const IoResult& result) {
  Channel* channel = find(id);
  auto* sink = static_cast<DatagramSink*>(channel->sink);
  if (!result.ok()) {
    if (!result.would_block()) {
      sink->on_receive_error(result.error);
    }
    return false;
  }
  const bool more = sink->on_datagrams(batch_->received(static_cast<std::size_t>(result.value)));
  channel = find(id);
  return more && channel != nullptr && channel->wants(kWantReadable);
}

void ReadinessBackend::receive_datagrams(Channel& channel) {
  if (batch_ == nullptr) {
    batch_ = std::make_unique<os::DatagramBatch>();
  }
  const int fd = channel.fd;
  const ChannelId id = channel.id;
  if (channel.batch > 1 && os::receive_mode() == os::ReceiveMode::batches) {
    const IoResult result = batch_->receive(fd);
    if (result.error != ENOSYS && result.error != EPERM) {
      (void)deliver_datagrams(id, result);
      return;
    }
    os::force_receive_mode(os::ReceiveMode::one_by_one);
  }
  // The same bound. Each is delivered before the next is taken from the kernel.
  for (unsigned i = 0; i < os::DatagramBatch::kMessages; ++i) {
    // What the one before has called may have closed the file.
    if (i != 0 && !find(id)->sink->owns_descriptor()) {
      return;
    }
    if (!deliver_datagrams(id, batch_->receive_one(fd))) {
      return;
    }
  }
}

void ReadinessBackend::accept(Channel& channel) {
  auto* sink = static_cast<AcceptSink*>(channel.sink);
  const int fd = channel.fd;
  const ChannelId id = channel.id;
  // Asking for a connection that is not there costs the kernel as much as one that is. Where they
  // come one by one only one is asked for; what is behind it the next poll tells, and then there
  // are several.
  const auto now = static_cast<std::uint16_t>(polls_);
  const bool again = now == static_cast<std::uint16_t>(channel.accepted_in + 1);
  channel.accepts_one = channel.accepts_one && !again;
  channel.accepted_in = now;
  const int batch = channel.accepts_one ? 1 : channel.batch;
  for (int i = 0; i < batch; ++i) {
    os::SocketAddress peer;
    const IoResult result = os::accept(fd, peer);
    if (result.ok()) {
      const bool more = sink->on_accepted(UniqueFd(static_cast<int>(result.value)), peer);
      if (!more || find(id) == nullptr || !sink->owns_descriptor()) {
        return;
      }
      continue;
    }
    if (result.error == ECONNABORTED) {
      continue;  // The peer gave up before it was accepted; others may be waiting behind it.
    }
    if (result.would_block()) {
      channel.accepts_one = i == 1;
    } else {
      sink->on_accept_error(result.error);
    }
    return;
  }
}

}  // namespace cpploop

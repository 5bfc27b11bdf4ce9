#include "core/backend/epoll_backend.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "core/os/pipe_ops.h"

namespace cpploop {
namespace {

// Slot numbers come from a vector's index, so the wake-up descriptor's can never be one.
constexpr std::uint64_t kWakeupData = UINT64_MAX;

// How often a kernel that goes on refusing to watch a descriptor is asked: without a rest the loop
// would do nothing else.
constexpr std::int64_t kRestAfterRefusalNs = 5'000'000;

[[nodiscard]] std::uint64_t pack(ChannelId id) noexcept {
  return (static_cast<std::uint64_t>(id.generation) << 32) | id.slot;
}

[[nodiscard]] ChannelId unpack(std::uint64_t data) noexcept {
  return ChannelId{static_cast<std::uint32_t>(data), static_cast<std::uint32_t>(data >> 32)};
}

[[nodiscard]] std::uint32_t epoll_mask(std::uint8_t wanted) noexcept {
  std::uint32_t mask = 0;
  if ((wanted & kWantReadable) != 0) {
    mask |= EPOLLIN;
  }
  if ((wanted & kWantWritable) != 0) {
    mask |= EPOLLOUT;
  }
  return mask;
}

}  // namespace

EpollBackend::EpollBackend(int wakeup_fd) : events_(kEventsPerWait) {
  const IoResult created = os::epoll_create();
  if (!created.ok()) {
    throw std::system_error(created.error, std::generic_category(), "epoll_create1");
  }
  epoll_fd_.reset(static_cast<int>(created.value));
  if (const int error = watch_wakeup(wakeup_fd, true); error != 0) {
    throw std::system_error(error, std::generic_category(), "epoll_ctl");
  }
}

int EpollBackend::watch_wakeup(int wakeup_fd, bool watched) noexcept {
  return watched ? os::epoll_add(epoll_fd_.get(), wakeup_fd, EPOLLIN, kWakeupData)
                 : os::epoll_remove(epoll_fd_.get(), wakeup_fd);
}

IoResult EpollBackend::send(Channel& channel, std::span<const iovec> parts) noexcept {
  if (parts.size() == 1) {
    return os::send(channel.fd, parts[0].iov_base, parts[0].iov_len);
  }
  return os::send_vector(channel.fd, parts.data(), parts.size());
}

IoResult EpollBackend::read(int fd, std::span<const iovec> parts) noexcept {
  return os::read_vector(fd, parts);
}

IoResult EpollBackend::write(int fd, std::span<const iovec> parts) noexcept {
  return os::write_vector(fd, parts);
}

IoResult EpollBackend::send_datagram(Channel& channel, const void* data, std::size_t size,
                                     const os::SocketAddress* to) noexcept {
  return os::send_datagram(channel.fd, data, size, to);
}

int EpollBackend::start_connect(Channel& channel, const os::SocketAddress& address) {
  const IoResult result = os::connect(channel.fd, address);
  if (result.error != EINPROGRESS) {
    return result.error;
  }
  set_wanted(channel, kWantWritable);
  channel.writable_since = polls_;
  const int error = change_now(channel);
  return error == 0 ? EINPROGRESS : error;
}

void EpollBackend::note_change(Channel& channel) noexcept {
  if (channel.dirty || channel.wanted == channel.registered || abandoned_) {
    return;
  }
  try {
    dirty_.push_back(channel.id);
    channel.dirty = true;
  } catch (const std::bad_alloc&) {
    // No memory to put it off: tell the kernel now.
    (void)change_now(channel);
  }
}

int EpollBackend::change_now(Channel& channel) noexcept {
  if (hands_off() || (channel.wanted == 0 && channel.registered == 0)) {
    return 0;
  }
  const std::uint32_t mask = epoll_mask(channel.wanted);
  const std::uint64_t data = pack(channel.id);
  int error = 0;
  if (channel.wanted == 0) {
    error = remove_now(channel);
  } else if (channel.registered == 0) {
    error = os::epoll_add(epoll_fd_.get(), channel.fd, mask, data);
    if (error == EEXIST) {
      error = os::epoll_modify(epoll_fd_.get(), channel.fd, mask, data);
    }
  } else {
    error = os::epoll_modify(epoll_fd_.get(), channel.fd, mask, data);
    if (error == ENOENT) {
      // The number was closed and given to another file while it was watched.
      error = os::epoll_add(epoll_fd_.get(), channel.fd, mask, data);
    }
  }
  if (error == 0 && channel.wanted != 0) {
    note_holder(channel);
  }
  if (error == 0 || channel.wanted == 0) {
    channel.registered = channel.wanted;
  }
  return error;
}

int EpollBackend::remove_now(const Channel& channel) noexcept {
  const auto index = static_cast<std::size_t>(channel.fd);
  if (index < holders_.size() && holders_[index] != channel.id) {
    return 0;
  }
  return os::epoll_remove(epoll_fd_.get(), channel.fd);
}

void EpollBackend::note_holder(const Channel& channel) noexcept {
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

void EpollBackend::apply_changes() {
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

// What the kernel will not watch is tried at once the first time, and every now and then after
// that.
std::int64_t EpollBackend::limit_by_refusals(std::int64_t timeout_ns) const noexcept {
  if (failed_.empty()) {
    return timeout_ns;
  }
  if (refused_polls_ == 1) {
    return 0;
  }
  return timeout_ns < 0 ? kRestAfterRefusalNs : std::min(timeout_ns, kRestAfterRefusalNs);
}

void EpollBackend::forget(Channel& channel) noexcept {
  // wanted is 0 here. Removed explicitly, although closing usually does it: a forked child that
  // holds a copy of the descriptor would keep the registration alive, and level-triggered events of
  // nobody would spin the loop.
  if (channel.registered != 0) {
    (void)change_now(channel);
  }
}

void EpollBackend::close() noexcept {
  abandoned_ = true;
  epoll_fd_.reset();
}

IoResult EpollBackend::wait(std::int64_t timeout_ns) {
  event_count_ = 0;
  woken_ = false;
  const IoResult result =
      os::epoll_wait(epoll_fd_.get(), events_.data(), static_cast<int>(events_.size()),
                     limit_by_refusals(timeout_ns));
  ++polls_;
  if (result.ok()) {
    event_count_ = static_cast<int>(result.value);
  }
  return result;
}

void EpollBackend::collect(ReadyQueue& ready) {
  ready.reserve(static_cast<std::size_t>(event_count_) + failed_.size());
  for (int i = 0; i < event_count_; ++i) {
    const epoll_event& event = events_[static_cast<std::size_t>(i)];
    if (event.data.u64 == kWakeupData) {
      woken_ = true;
      continue;
    }
    // Errors and hang-ups wake both directions: whoever reads or writes next learns the reason.
    std::uint32_t io_events = 0;
    if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) {
      io_events |= kIoReadable;
    }
    if ((event.events & ~static_cast<std::uint32_t>(EPOLLIN)) != 0) {
      io_events |= kIoWritable;
    }
    ready.push(ReadyEntry::of_io(unpack(event.data.u64), io_events));
  }
  event_count_ = 0;
  for (const ChannelId id : failed_) {
    ready.push(ReadyEntry::of_io(id, kIoReadable | kIoWritable));
    if (Channel* channel = find(id); channel != nullptr) {
      note_change(*channel);
    }
  }
  failed_.clear();
}

void EpollBackend::receive(Channel& channel) {
  read_for(channel, [](const Channel& still, const ReceiveBuffer& room) {
    return os::receive(still.fd, room.data, room.size);
  });
}

bool EpollBackend::deliver_datagrams(ChannelId id, const IoResult& result) {
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

void EpollBackend::receive_datagrams(Channel& channel) {
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
    if (!deliver_datagrams(id, batch_->receive_one(fd))) {
      return;
    }
  }
}

void EpollBackend::accept(Channel& channel) {
  auto* sink = static_cast<AcceptSink*>(channel.sink);
  const int fd = channel.fd;
  const ChannelId id = channel.id;
  for (int i = channel.batch; i > 0; --i) {
    os::SocketAddress peer;
    const IoResult result = os::accept(fd, peer);
    if (result.ok()) {
      const bool more = sink->on_accepted(UniqueFd(static_cast<int>(result.value)), peer);
      if (!more || find(id) == nullptr) {
        return;
      }
      continue;
    }
    if (result.error == ECONNABORTED) {
      continue;  // The peer gave up before it was accepted; others may be waiting behind it.
    }
    if (!result.would_block()) {
      sink->on_accept_error(result.error);
    }
    return;
  }
}

}  // namespace cpploop

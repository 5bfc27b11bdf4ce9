#include "core/backend/epoll_backend.h"

#include <cerrno>
#include <system_error>

#include "core/os/epoll_ops.h"

namespace cpploop {
namespace {

[[nodiscard]] std::uint32_t epoll_mask(const Channel& channel) noexcept {
  std::uint32_t mask = channel.edge ? static_cast<std::uint32_t>(EPOLLET) : 0U;
  if (channel.wants(kWantReadable)) {
    mask |= EPOLLIN;
  }
  if (channel.wants(kWantWritable)) {
    mask |= EPOLLOUT;
  }
  return mask;
}

}  // namespace

EpollBackend::EpollBackend(int wakeup_fd) : events_(kEventsPerWait) {
  has_edges_ = true;
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

int EpollBackend::watch_notices(int fd) noexcept {
  // Each notice is new and ends one wait: nobody has to read them.
  return os::epoll_add(epoll_fd_.get(), fd, EPOLLIN | static_cast<std::uint32_t>(EPOLLET),
                       kNoticeData);
}

int EpollBackend::register_now(const Channel& channel) noexcept {
  const std::uint32_t mask = epoll_mask(channel);
  const std::uint64_t data = to_data(channel.id);
  int error = 0;
  if (channel.registered == 0) {
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
  return error;
}

int EpollBackend::remove_now(const Channel& channel) noexcept {
  return os::epoll_remove(epoll_fd_.get(), channel.fd);
}

void EpollBackend::close() noexcept {
  abandoned_ = true;
  epoll_fd_.reset();
}

IoResult EpollBackend::wait(std::int64_t timeout_ns) {
  if (event_count_ != 0) {
    return IoResult::success(event_count_);  // collect() had no memory; an edge is told once.
  }
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
  ready.reserve(static_cast<std::size_t>(event_count_) + refused_count());
  for (int i = 0; i < event_count_; ++i) {
    const epoll_event& event = events_[static_cast<std::size_t>(i)];
    if (event.data.u64 == kWakeupData) {
      woken_ = true;
      continue;
    }
    if (event.data.u64 == kNoticeData) {
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
    ready.push(ReadyEntry::of_io(from_data(event.data.u64), io_events));
  }
  event_count_ = 0;
  collect_refused(ready);
}

}  // namespace cpploop

#include "core/os/platform.h"

#if CPPLOOP_HAVE_KQUEUE

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "core/backend/kqueue_backend.h"
#include "core/os/kqueue_ops.h"
#include "core/os/pipe_ops.h"

namespace cpploop {
namespace {

struct Filter {
  Wanted what;
  std::int16_t number;
};
constexpr std::array<Filter, 2> kFilters = {
    {{kWantReadable, EVFILT_READ}, {kWantWritable, EVFILT_WRITE}}};

static_assert(sizeof(void*) >= sizeof(std::uint64_t), "a channel's identity travels as a pointer");

[[nodiscard]] struct kevent change_of(int fd, std::int16_t filter, std::uint16_t flags,
                                      std::uint64_t data) noexcept {
  struct kevent change{};
  change.ident = static_cast<std::uintptr_t>(fd);
  change.filter = filter;
  change.flags = flags;
  change.udata = reinterpret_cast<void*>(data);
  return change;
}

}  // namespace

KqueueBackend::KqueueBackend(int wakeup_fd) : events_(kEventsPerWait) {
  const IoResult created = os::kqueue_create();
  if (!created.ok()) {
    throw std::system_error(created.error, std::generic_category(), "kqueue");
  }
  queue_.reset(static_cast<int>(created.value));
  const auto wakeup = change_of(wakeup_fd, EVFILT_READ, EV_ADD, kWakeupData);
  if (const int error = os::kqueue_change(queue_.get(), wakeup); error != 0) {
    throw std::system_error(error, std::generic_category(), "kevent");
  }
}

KqueueBackend::~KqueueBackend() { let_go_if_forked(); }

// A forked child has no queue: the kernel has closed it there, and its number may be another's.
void KqueueBackend::let_go_if_forked() noexcept {
  if (is_forked()) {
    (void)queue_.release();
  }
}

void KqueueBackend::abandon_after_fork() noexcept {
  ReadinessBackend::abandon_after_fork();
  let_go_if_forked();
}

void KqueueBackend::close() noexcept {
  abandoned_ = true;
  let_go_if_forked();
  queue_.reset();
}

int KqueueBackend::add(const Channel& channel, std::uint8_t what) noexcept {
  for (const Filter& filter : kFilters) {
    if ((what & filter.what) != 0) {
      const auto change = change_of(channel.fd, filter.number, EV_ADD, to_data(channel.id));
      if (const int error = os::kqueue_change(queue_.get(), change); error != 0) {
        return error;
      }
    }
  }
  return 0;
}

int KqueueBackend::remove(const Channel& channel, std::uint8_t what) noexcept {
  int error = 0;
  for (const Filter& filter : kFilters) {
    if ((what & filter.what) != 0) {
      const int failed =
          os::kqueue_change(queue_.get(), change_of(channel.fd, filter.number, EV_DELETE, 0));
      error = failed != 0 ? failed : error;
    }
  }
  return error;
}

int KqueueBackend::register_now(const Channel& channel) noexcept {
  if (channel.kind == Channel::Kind::process) {
    auto change = change_of(channel.fd, EVFILT_PROC, EV_ADD | EV_ONESHOT, to_data(channel.id));
    change.fflags = NOTE_EXIT;
    return os::kqueue_change(queue_.get(), change);
  }
  const bool ours = channel.kind != Channel::Kind::readiness;
  if (!ours && os::is_regular_file(channel.fd)) {
    return EPERM;  // It is always ready. epoll's answer, and everywhere the same one.
  }
  // What others own may have been closed, and its number given away, since it was registered: the
  // kernel is told everything again.
  const std::uint8_t known = ours ? channel.registered : 0;
  (void)remove(channel, static_cast<std::uint8_t>(channel.registered & ~channel.wanted));
  int error = add(channel, static_cast<std::uint8_t>(channel.wanted & ~known));
  if (error != 0) {
    // A queue may still know the number as that of a file which was closed. The BSDs' never does.
    (void)remove(channel, kWantReadable | kWantWritable);
    error = add(channel, channel.wanted);
  }
  if (error != 0) {
    (void)remove(channel, static_cast<std::uint8_t>(channel.wanted & ~channel.registered));
  }
  return error;
}

int KqueueBackend::remove_now(const Channel& channel) noexcept {
  if (channel.kind == Channel::Kind::process) {
    return os::kqueue_change(queue_.get(), change_of(channel.fd, EVFILT_PROC, EV_DELETE, 0));
  }
  return remove(channel, channel.registered);
}

IoResult KqueueBackend::wait(std::int64_t timeout_ns) {
  if (event_count_ != 0) {
    // collect() had no memory; the end of a process is told once.
    return IoResult::success(static_cast<std::int64_t>(event_count_));
  }
  woken_ = false;
  const IoResult result = os::kqueue_wait(queue_.get(), events_, limit_by_refusals(timeout_ns));
  ++polls_;
  if (result.ok()) {
    event_count_ = static_cast<std::size_t>(result.value);
  }
  return result;
}

void KqueueBackend::collect(ReadyQueue& ready) {
  ready.reserve(event_count_ + refused_count());
  for (std::size_t i = 0; i < event_count_; ++i) {
    const auto data = reinterpret_cast<std::uint64_t>(events_[i].udata);
    if (data == kWakeupData) {
      woken_ = true;
      continue;
    }
    std::uint32_t io_events = events_[i].filter == EVFILT_WRITE ? kIoWritable : kIoReadable;
    // Both directions of a channel become one event, reading first, where they come together.
    if (i + 1 < event_count_ && events_[i + 1].udata == events_[i].udata) {
      io_events = kIoReadable | kIoWritable;
      ++i;
    }
    ready.push(ReadyEntry::of_io(from_data(data), io_events));
  }
  event_count_ = 0;
  collect_refused(ready);
}

}  // namespace cpploop

#endif

#include "core/os/io_ring.h"

#include <cerrno>
#include <new>
#include <utility>

#ifdef CPPLOOP_WITH_IO_URING

#include <liburing.h>
#include <poll.h>
#include <sys/mman.h>

#include "core/os/clock.h"
#include "core/os/ring_faults.h"

namespace cpploop::os {
namespace {

constexpr unsigned kEntries = 256;
constexpr unsigned kCompletions = 2048;
constexpr int kBufferGroup = 0;
constexpr std::size_t kDescriptorBytes = IoRing::kBuffers * sizeof(io_uring_buf);
constexpr std::size_t kMemoryBytes = kDescriptorBytes + IoRing::kBuffers * IoRing::kBufferSize;
constexpr unsigned kNeededFeatures =
    IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_SUBMIT_STABLE;
// Without an end: liburing takes a signal for none when it was given no time, and waits on.
constexpr std::int64_t kVeryLongNs = 24LL * 3600 * kNanosecondsPerSecond;

// Best first. A send that fails must not keep those behind it from being submitted.
constexpr unsigned kSetups[] = {
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
        IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
};

}  // namespace

struct IoRing::Implementation {
  ~Implementation() {
    if (open) {
      io_uring_queue_exit(&ring);
    }
    if (memory != MAP_FAILED) {
      (void)::munmap(memory, kMemoryBytes);
    }
  }

  [[nodiscard]] int set_up() noexcept {
    int error = EINVAL;
    for (const unsigned flags : kSetups) {
      io_uring_params params{};
      params.flags = flags | IORING_SETUP_CQSIZE;
      params.cq_entries = kCompletions;
      // Kernels that have it also tell how much of a send went out before it failed.
      deferred = (flags & IORING_SETUP_DEFER_TASKRUN) != 0;
      error = RingFaults::of_setup(deferred);
      if (error == 0) {
        error = -io_uring_queue_init_params(kEntries, &ring, &params);
      }
      if (error == 0) {
        open = true;
        return (params.features & kNeededFeatures) == kNeededFeatures ? 0 : ENOSYS;
      }
      if (error != EINVAL) {
        return error;
      }
    }
    return error;
  }

  [[nodiscard]] int provide_buffers() noexcept {
    // Pages that no connection's bytes have touched are never backed by memory.
    memory =
        ::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return errno;
    }
    io_uring_buf_reg registration{};
    registration.ring_addr = reinterpret_cast<std::uintptr_t>(memory);
    registration.ring_entries = kBuffers;
    registration.bgid = kBufferGroup;
    if (const int error = -io_uring_register_buf_ring(&ring, &registration, 0); error != 0) {
      return error;
    }
    descriptors = static_cast<io_uring_buf_ring*>(memory);
    buffers = static_cast<char*>(memory) + kDescriptorBytes;
    io_uring_buf_ring_init(descriptors);
    for (std::uint16_t id = 0; id < kBuffers; ++id) {
      add(id, id);
    }
    io_uring_buf_ring_advance(descriptors, kBuffers);
    return 0;
  }

  void add(std::uint16_t id, int offset) noexcept {
    io_uring_buf_ring_add(descriptors, buffers + id * kBufferSize,
                          static_cast<unsigned>(RingFaults::room_of(kBufferSize)), id,
                          io_uring_buf_ring_mask(kBuffers), offset);
  }

  // Puts one operation into the queue, as `fill` says it. False when the queue is full.
  template <typename Fill>
  [[nodiscard]] bool prepare(std::uint64_t user_data, Fill fill) noexcept {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    if (sqe == nullptr) {
      return false;
    }
    fill(sqe);
    io_uring_sqe_set_data64(sqe, user_data);
    ++prepared;
    return true;
  }

  // The same for one that may meet a fault, which may also make it less than `size`.
  template <typename Fill>
  [[nodiscard]] bool prepare(RingOperation operation, int fd, std::size_t size,
                             std::uint64_t user_data, Fill fill) noexcept {
    return prepare(user_data, [&](io_uring_sqe* sqe) {
      if (faults.spoils(operation, fd, user_data, size)) {
        io_uring_prep_nop(sqe);
      } else {
        fill(sqe, size);
      }
    });
  }

  // Of one send. MSG_WAITALL makes a short one a failure, which reports although successes do not.
  void finish_send(io_uring_sqe* sqe, bool whole) const noexcept {
    if (deferred && whole) {
      sqe->msg_flags |= MSG_WAITALL;
      io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
    }
  }

  io_uring ring{};
  bool open = false;
  bool deferred = false;
  std::uint32_t prepared = 0;
  void* memory = MAP_FAILED;
  io_uring_buf_ring* descriptors = nullptr;
  char* buffers = nullptr;
  [[no_unique_address]] RingFaults faults;
};

namespace {

[[nodiscard]] IoResult result_of(int value) noexcept {
  if (value >= 0 || value == -ETIME) {
    return IoResult::success(0);
  }
  // Completions that the queue has no room for wait in the kernel: there is something to collect.
  return value == -EBUSY || value == -EAGAIN ? IoResult::success(0) : IoResult::failure(-value);
}

}  // namespace

IoRing::IoRing(std::unique_ptr<Implementation> implementation) noexcept
    : impl_(std::move(implementation)) {}

IoRing::~IoRing() = default;

bool IoRing::built() noexcept { return true; }

std::unique_ptr<IoRing> IoRing::open(Refusal& refusal) noexcept {
  std::unique_ptr<Implementation> made(new (std::nothrow) Implementation);
  if (made == nullptr) {
    refusal = {"memory", ENOMEM};
    return nullptr;
  }
  if (const int error = made->set_up(); error != 0) {
    refusal = {"io_uring_setup", error};
    return nullptr;
  }
  if (const int error = made->provide_buffers(); error != 0) {
    refusal = {"io_uring_register", error};
    return nullptr;
  }
  std::unique_ptr<IoRing> ring(new (std::nothrow) IoRing(std::move(made)));
  if (ring == nullptr) {
    refusal = {"memory", ENOMEM};
  }
  return ring;
}

bool IoRing::poll(int fd, bool readable, std::uint64_t user_data) noexcept {
  const auto operation = readable ? RingOperation::poll_in : RingOperation::poll_out;
  return impl_->prepare(operation, fd, 0, user_data, [&](io_uring_sqe* sqe, std::size_t) {
    io_uring_prep_poll_add(sqe, fd, readable ? POLLIN : POLLOUT);
  });
}

bool IoRing::receive_many(int fd, std::uint64_t user_data) noexcept {
  return impl_->prepare(RingOperation::receive, fd, 0, user_data,
                        [&](io_uring_sqe* sqe, std::size_t) {
                          io_uring_prep_recv_multishot(sqe, fd, nullptr, 0, 0);
                          io_uring_sqe_set_flags(sqe, IOSQE_BUFFER_SELECT);
                          sqe->buf_group = kBufferGroup;
                        });
}

bool IoRing::send(int fd, const void* data, std::size_t size, std::uint64_t user_data) noexcept {
  return impl_->prepare(RingOperation::send, fd, size, user_data,
                        [&](io_uring_sqe* sqe, std::size_t part) {
                          io_uring_prep_send(sqe, fd, data, part, MSG_NOSIGNAL | MSG_DONTWAIT);
                          impl_->finish_send(sqe, part == size);
                        });
}

bool IoRing::send_message(int fd, const msghdr* message, std::uint64_t user_data) noexcept {
  const iovec& first = message->msg_iov[0];
  return impl_->prepare(
      RingOperation::send, fd, first.iov_len, user_data, [&](io_uring_sqe* sqe, std::size_t part) {
        if (part < first.iov_len) {
          io_uring_prep_send(sqe, fd, first.iov_base, part, MSG_NOSIGNAL | MSG_DONTWAIT);
        } else {
          io_uring_prep_sendmsg(sqe, fd, message, MSG_NOSIGNAL | MSG_DONTWAIT);
          impl_->finish_send(sqe, true);
        }
      });
}

bool IoRing::cancel(std::uint64_t target, std::uint64_t user_data) noexcept {
  return impl_->prepare(user_data, [&](io_uring_sqe* sqe) {
    io_uring_prep_cancel64(sqe, target, 0);
    io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
  });
}

bool IoRing::cancel_all(std::uint64_t user_data) noexcept {
  return impl_->prepare(user_data, [&](io_uring_sqe* sqe) {
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY);
    io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
  });
}

int IoRing::give_notice_to(int eventfd) noexcept {
  return -(eventfd < 0 ? io_uring_unregister_eventfd(&impl_->ring)
                       : io_uring_register_eventfd(&impl_->ring, eventfd));
}

bool IoRing::sends_report_failure_only() const noexcept { return impl_->deferred; }

std::uint32_t IoRing::prepared() const noexcept { return impl_->prepared; }

unsigned IoRing::unsubmitted() const noexcept { return io_uring_sq_ready(&impl_->ring); }

bool IoRing::has_overflow() const noexcept {
  return (IO_URING_READ_ONCE(*impl_->ring.sq.kflags) & IORING_SQ_CQ_OVERFLOW) != 0;
}

bool IoRing::has_news() const noexcept {
  return io_uring_cq_ready(&impl_->ring) != 0 || (IO_URING_READ_ONCE(*impl_->ring.sq.kflags) &
                                                  (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

IoResult IoRing::submit() noexcept {
  bool waits = false;
  if (const int error = RingFaults::of_enter(waits); error != 0) {
    return result_of(-error);
  }
  return result_of(io_uring_submit_and_get_events(&impl_->ring));
}

IoResult IoRing::submit_and_wait(unsigned count, std::int64_t timeout_ns) noexcept {
  if (timeout_ns < 0) {
    timeout_ns = kVeryLongNs;
  }
  bool waits = true;
  if (const int error = RingFaults::of_enter(waits); error != 0) {
    return result_of(-error);
  }
  if (!waits) {
    return result_of(io_uring_submit_and_get_events(&impl_->ring));
  }
  __kernel_timespec timeout{};
  timeout.tv_sec = timeout_ns / kNanosecondsPerSecond;
  timeout.tv_nsec = timeout_ns % kNanosecondsPerSecond;
  io_uring_cqe* first = nullptr;
  const bool submits = unsubmitted() != 0;
  const std::int64_t started_ns = submits ? monotonic_now_ns() : 0;
  const int value =
      io_uring_submit_and_wait_timeout(&impl_->ring, &first, count, &timeout, nullptr);
  if (value < 0 && value != -ETIME && value != -EINTR) {
    return result_of(value);
  }
  // A call that submitted says how many, whatever ended its wait. Too early it was a signal.
  if (submits && ready() < count && monotonic_now_ns() - started_ns < timeout_ns) {
    return IoResult::failure(EINTR);
  }
  return result_of(value);
}

unsigned IoRing::ready() const noexcept { return io_uring_cq_ready(&impl_->ring); }

RingCompletion IoRing::at(unsigned index) const noexcept {
  const io_uring& ring = impl_->ring;
  const io_uring_cqe& cqe = ring.cq.cqes[(*ring.cq.khead + index) & ring.cq.ring_mask];
  RingCompletion completion;
  completion.user_data = cqe.user_data;
  completion.result = impl_->faults.outcome(cqe.user_data, cqe.res);
  completion.has_buffer = (cqe.flags & IORING_CQE_F_BUFFER) != 0;
  completion.buffer = static_cast<std::uint16_t>(cqe.flags >> IORING_CQE_BUFFER_SHIFT);
  completion.more = (cqe.flags & IORING_CQE_F_MORE) != 0;
  return completion;
}

void IoRing::consume(unsigned count) noexcept { io_uring_cq_advance(&impl_->ring, count); }

const char* IoRing::buffer(std::uint16_t id) const noexcept {
  return impl_->buffers + id * kBufferSize;
}

void IoRing::give_back(std::uint16_t id) noexcept {
  impl_->add(id, 0);
  io_uring_buf_ring_advance(impl_->descriptors, 1);
}

}  // namespace cpploop::os

#else

// Built without liburing: a ring can be asked for, and is never there.
namespace cpploop::os {

struct IoRing::Implementation {};

IoRing::IoRing(std::unique_ptr<Implementation> implementation) noexcept
    : impl_(std::move(implementation)) {}
IoRing::~IoRing() = default;

bool IoRing::built() noexcept { return false; }
std::unique_ptr<IoRing> IoRing::open(Refusal& refusal) noexcept {
  refusal = {"build", ENOSYS};
  return nullptr;
}

bool IoRing::poll(int, bool, std::uint64_t) noexcept { return false; }
bool IoRing::receive_many(int, std::uint64_t) noexcept { return false; }
bool IoRing::send(int, const void*, std::size_t, std::uint64_t) noexcept { return false; }
bool IoRing::send_message(int, const msghdr*, std::uint64_t) noexcept { return false; }
bool IoRing::cancel(std::uint64_t, std::uint64_t) noexcept { return false; }
bool IoRing::cancel_all(std::uint64_t) noexcept { return false; }
int IoRing::give_notice_to(int) noexcept { return ENOSYS; }
bool IoRing::sends_report_failure_only() const noexcept { return false; }
std::uint32_t IoRing::prepared() const noexcept { return 0; }
unsigned IoRing::unsubmitted() const noexcept { return 0; }
bool IoRing::has_overflow() const noexcept { return false; }
bool IoRing::has_news() const noexcept { return false; }
IoResult IoRing::submit() noexcept { return IoResult::failure(ENOSYS); }
IoResult IoRing::submit_and_wait(unsigned, std::int64_t) noexcept {
  return IoResult::failure(ENOSYS);
}
unsigned IoRing::ready() const noexcept { return 0; }
RingCompletion IoRing::at(unsigned) const noexcept { return {}; }
void IoRing::consume(unsigned) noexcept {}
const char* IoRing::buffer(std::uint16_t) const noexcept { return nullptr; }
void IoRing::give_back(std::uint16_t) noexcept {}

}  // namespace cpploop::os

#endif

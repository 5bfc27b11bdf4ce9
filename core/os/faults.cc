#include "core/os/faults.h"

#ifdef CPPLOOP_FAULTS

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <span>

#include "core/os/kernel.h"
#include "core/os/ring_faults.h"

namespace cpploop::os::faults {
namespace {

constexpr std::uint32_t kMillion = 1'000'000;

constexpr std::array<std::string_view, kCalls> kNames = {
    "recv",          "recvfrom",     "recvmmsg",     "send",           "sendmsg",
    "sendto",        "read",         "readv",        "write",          "writev",
    "accept4",       "accept",       "connect",      "eventfd",        "epoll_create1",
    "epoll_ctl",     "epoll_wait",   "epoll_pwait2", "io_uring_setup", "io_uring_enter",
    "ring_deferred", "ring_receive", "ring_send",    "ring_poll",      "ring_buffer"};

struct Plan {
  Plan() noexcept;

  std::atomic<std::uint64_t> state{0};
  std::array<std::atomic<std::uint32_t>, kKinds> per_million{};
  std::array<std::atomic<int>, kCalls> refusals{};
  std::atomic<std::uint64_t> calls{0};
  std::array<std::atomic<std::uint64_t>, kKinds> injected{};
  std::atomic<std::uint64_t> refused{0};
};

[[nodiscard]] std::uint32_t share_from_environment(const char* name) noexcept {
  const char* text = std::getenv(name);
  const double share = text == nullptr ? 0.0 : std::strtod(text, nullptr);
  return static_cast<std::uint32_t>(std::clamp(share, 0.0, 1.0) * kMillion);
}

Plan::Plan() noexcept {
  if (const char* seed = std::getenv("CPPLOOP_FAULT_SEED"); seed != nullptr) {
    state = std::strtoull(seed, nullptr, 0);
  }
  per_million[0] = share_from_environment("CPPLOOP_FAULT_BENIGN");
  per_million[1] = share_from_environment("CPPLOOP_FAULT_PRESSURE");
  per_million[2] = share_from_environment("CPPLOOP_FAULT_HARD");
}

[[nodiscard]] Plan& plan() noexcept {
  static Plan the_one;
  return the_one;
}

// SplitMix64: any thread takes the next number with one atomic addition.
[[nodiscard]] std::uint64_t next_random() noexcept {
  std::uint64_t z = plan().state.fetch_add(0x9e3779b97f4a7c15) + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Stands for a call that is made, but for less than was asked.
constexpr int kShort = -1;

// What a call may meet; an empty list: no fault of that kind.
struct Choice {
  std::span<const int> benign{};
  std::span<const int> pressure{};
  std::span<const int> hard{};
};

constexpr int kReceiveBenign[] = {EINTR, EAGAIN, kShort, kShort, kShort};
constexpr int kReceiveHard[] = {ECONNRESET, ETIMEDOUT, EHOSTUNREACH};
constexpr int kSendBenign[] = {EINTR};
constexpr int kSendPressure[] = {EAGAIN, kShort, kShort};
constexpr int kSendHard[] = {EPIPE, ECONNRESET, ENOBUFS};
constexpr int kDatagramInBenign[] = {EINTR, EAGAIN};
constexpr int kDatagramsInBenign[] = {EINTR, EAGAIN, kShort, kShort};
constexpr int kDatagramInHard[] = {ECONNREFUSED, ENOMEM};
constexpr int kDatagramOutPressure[] = {EAGAIN};
constexpr int kDatagramOutHard[] = {ECONNREFUSED, ENOBUFS, ENETUNREACH};
constexpr int kReadHard[] = {EIO};
constexpr int kWriteHard[] = {EPIPE, EIO};
constexpr int kAcceptBenign[] = {EINTR, EAGAIN};
// Out of descriptors, a server rests for a second; a peer that gave up it does not notice.
constexpr int kAcceptHard[] = {ECONNABORTED, ECONNABORTED, ECONNABORTED, EMFILE, ENFILE, ENOMEM};
constexpr int kConnectHard[] = {EADDRNOTAVAIL, ECONNREFUSED, ENETUNREACH};
constexpr int kMakeHard[] = {EMFILE, ENFILE, ENOMEM};
constexpr int kAddHard[] = {ENOMEM, ENOSPC};
constexpr int kWaitBenign[] = {EINTR, kShort};
constexpr int kEnterBenign[] = {EINTR, EAGAIN, EBUSY, kShort};
// A standing receive ends when the buffers are gone, and is begun again.
constexpr int kRingReceiveBenign[] = {ENOBUFS, ENOBUFS, EINTR, EAGAIN};
constexpr int kRingReceiveHard[] = {ECONNRESET, ETIMEDOUT, EHOSTUNREACH};
// A poll that reports what is not there: others may have read it.
constexpr int kRingPollBenign[] = {kShort};
constexpr int kRingPollHard[] = {ENOMEM};
constexpr int kRingBufferBenign[] = {kShort};

struct Fault {
  int what = 0;  // An errno, kShort, or 0 for none.
  std::uint64_t random = 0;
};

[[nodiscard]] Fault pick(Kind kind, std::span<const int> from, std::uint64_t random) noexcept {
  if (from.empty()) {
    return {};
  }
  ++plan().injected[static_cast<std::size_t>(kind)];
  return {from[(random >> 40) % from.size()], random >> 48};
}

// One number decides: whether, which kind, which fault. `choose` is asked only if it comes to that.
template <typename Choose>
[[nodiscard]] Fault draw(Call call, Choose choose) noexcept {
  Plan& all = plan();
  ++all.calls;
  if (const int refusal = all.refusals[static_cast<std::size_t>(call)]; refusal != 0) {
    ++all.refused;
    return {refusal, 0};
  }
  const std::array<std::uint32_t, kKinds> rates = {all.per_million[0], all.per_million[1],
                                                   all.per_million[2]};
  if ((rates[0] | rates[1] | rates[2]) == 0) {
    return {};
  }
  const std::uint64_t random = next_random();
  auto at = static_cast<std::uint32_t>(static_cast<std::uint32_t>(random) % kMillion);
  for (std::size_t i = 0; i < kKinds; ++i) {
    if (at < rates[i]) {
      const Choice choice = choose();
      const std::array lists = {choice.benign, choice.pressure, choice.hard};
      return pick(static_cast<Kind>(i), lists[i], random);
    }
    at -= rates[i];
  }
  return {};
}

[[nodiscard]] bool fails(const Fault& fault) noexcept {
  if (fault.what <= 0) {
    return false;
  }
  errno = fault.what;
  return true;
}

// At least one byte of it: nothing at all would mean the end of the stream.
[[nodiscard]] std::size_t shortened(std::size_t size, const Fault& fault) noexcept {
  if (fault.what != kShort || size < 2) {
    return size;
  }
  // Half of them to a few bytes, where the borders of messages are.
  const std::size_t bound = (fault.random & 1) != 0 ? std::min<std::size_t>(size, 16) : size;
  return 1 + (fault.random >> 1) % (bound - 1);
}

// Whether what comes may be cut: the rest of a datagram would be lost.
[[nodiscard]] bool is_stream(int fd) noexcept {
  int type = 0;
  socklen_t size = sizeof(type);
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type == SOCK_STREAM;
}

[[nodiscard]] Choice receiving(int fd) noexcept {
  return is_stream(fd) ? Choice{kReceiveBenign, {}, kReceiveHard}
                       : Choice{kDatagramInBenign, {}, kDatagramInHard};
}

[[nodiscard]] Choice sending(int fd) noexcept {
  return is_stream(fd) ? Choice{kSendBenign, kSendPressure, kSendHard}
                       : Choice{kSendBenign, kDatagramOutPressure, kDatagramOutHard};
}

// What a pipe takes whole or not at all, others may be writing to it.
[[nodiscard]] Choice writing(std::size_t size) noexcept {
  return {kSendBenign, size > PIPE_BUF ? std::span<const int>(kSendPressure) : kDatagramOutPressure,
          kWriteHard};
}

// The parts of a vector that hold its first `limit` bytes.
class FirstParts {
 public:
  FirstParts(const iovec* parts, std::size_t count, const Fault& fault) noexcept {
    std::size_t left = 0;
    for (std::size_t i = 0; i < count; ++i) {
      left += parts[i].iov_len;
    }
    left = shortened(left, fault);
    for (; count_ < std::min(count, parts_.size()) && left > 0; ++count_) {
      parts_[count_] = {parts[count_].iov_base, std::min(left, parts[count_].iov_len)};
      left -= parts_[count_].iov_len;
    }
  }
  [[nodiscard]] iovec* data() noexcept { return parts_.data(); }
  [[nodiscard]] std::size_t count() const noexcept { return count_; }

 private:
  std::array<iovec, 64> parts_{};
  std::size_t count_ = 0;
};

[[nodiscard]] std::size_t size_of(const iovec* parts, int count) noexcept {
  std::size_t size = 0;
  for (int i = 0; i < count; ++i) {
    size += parts[i].iov_len;
  }
  return size;
}

}  // namespace

void configure(std::uint64_t seed, const Rates& rates) noexcept {
  Plan& all = plan();
  all.state = seed;
  for (std::size_t i = 0; i < kKinds; ++i) {
    all.per_million[i] = rates.per_million[i];
  }
}

bool refuse(std::string_view name, int error) noexcept {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) {
    return false;
  }
  plan().refusals[static_cast<std::size_t>(found - kNames.begin())] = error;
  return true;
}

Figures figures() noexcept {
  const Plan& all = plan();
  Figures result;
  result.calls = all.calls;
  for (std::size_t i = 0; i < kKinds; ++i) {
    result.injected[i] = all.injected[i];
  }
  result.refused = all.refused;
  return result;
}

}  // namespace cpploop::os::faults

// ---- the system calls ----

namespace cpploop::os::kernel {

using faults::Call;
using faults::Choice;
using faults::draw;
using faults::fails;
using faults::FirstParts;
using faults::shortened;

ssize_t recv(int fd, void* buffer, std::size_t size, int flags) noexcept {
  const auto fault = draw(Call::recv, [fd] { return faults::receiving(fd); });
  return fails(fault) ? -1 : ::recv(fd, buffer, shortened(size, fault), flags);
}

ssize_t recvfrom(int fd, void* buffer, std::size_t size, int flags, sockaddr* from,
                 socklen_t* length) noexcept {
  const auto fault = draw(Call::recvfrom, [fd] { return faults::receiving(fd); });
  return fails(fault) ? -1 : ::recvfrom(fd, buffer, shortened(size, fault), flags, from, length);
}

int recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags,
             std::timespec* timeout) noexcept {
  const auto fault = draw(Call::recvmmsg, [] {
    return Choice{faults::kDatagramsInBenign, {}, faults::kDatagramInHard};
  });
  const auto fewer = static_cast<unsigned>(shortened(count, fault));
  return fails(fault) ? -1 : ::recvmmsg(fd, messages, fewer, flags, timeout);
}

ssize_t send(int fd, const void* data, std::size_t size, int flags) noexcept {
  const auto fault = draw(Call::send, [fd] { return faults::sending(fd); });
  return fails(fault) ? -1 : ::send(fd, data, shortened(size, fault), flags);
}

ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept {
  const auto fault = draw(Call::sendmsg, [fd] { return faults::sending(fd); });
  if (fails(fault)) {
    return -1;
  }
  if (fault.what == 0) {
    return ::sendmsg(fd, message, flags);
  }
  FirstParts parts(message->msg_iov, message->msg_iovlen, fault);
  msghdr fewer = *message;
  fewer.msg_iov = parts.data();
  fewer.msg_iovlen = parts.count();
  return ::sendmsg(fd, &fewer, flags);
}

ssize_t sendto(int fd, const void* data, std::size_t size, int flags, const sockaddr* to,
               socklen_t length) noexcept {
  const auto fault = draw(Call::sendto, [] {
    return Choice{faults::kSendBenign, faults::kDatagramOutPressure, faults::kDatagramOutHard};
  });
  return fails(fault) ? -1 : ::sendto(fd, data, size, flags, to, length);
}

ssize_t read(int fd, void* buffer, std::size_t size) noexcept {
  const auto fault =
      draw(Call::read, [] { return Choice{faults::kReceiveBenign, {}, faults::kReadHard}; });
  return fails(fault) ? -1 : ::read(fd, buffer, shortened(size, fault));
}

ssize_t readv(int fd, const iovec* parts, int count) noexcept {
  const auto fault =
      draw(Call::readv, [] { return Choice{faults::kReceiveBenign, {}, faults::kReadHard}; });
  if (fails(fault)) {
    return -1;
  }
  FirstParts fewer(parts, static_cast<std::size_t>(count), fault);
  return fault.what == 0 ? ::readv(fd, parts, count)
                         : ::readv(fd, fewer.data(), static_cast<int>(fewer.count()));
}

ssize_t write(int fd, const void* data, std::size_t size) noexcept {
  const auto fault = draw(Call::write, [size] { return faults::writing(size); });
  return fails(fault) ? -1 : ::write(fd, data, shortened(size, fault));
}

ssize_t writev(int fd, const iovec* parts, int count) noexcept {
  const auto fault =
      draw(Call::writev, [=] { return faults::writing(faults::size_of(parts, count)); });
  if (fails(fault)) {
    return -1;
  }
  FirstParts fewer(parts, static_cast<std::size_t>(count), fault);
  return fault.what == 0 ? ::writev(fd, parts, count)
                         : ::writev(fd, fewer.data(), static_cast<int>(fewer.count()));
}

int accept4(int fd, sockaddr* peer, socklen_t* length, int flags) noexcept {
  const auto fault =
      draw(Call::accept4, [] { return Choice{faults::kAcceptBenign, {}, faults::kAcceptHard}; });
  return fails(fault) ? -1 : ::accept4(fd, peer, length, flags);
}

int accept(int fd, sockaddr* peer, socklen_t* length) noexcept {
  const auto fault =
      draw(Call::accept, [] { return Choice{faults::kAcceptBenign, {}, faults::kAcceptHard}; });
  return fails(fault) ? -1 : ::accept(fd, peer, length);
}

int connect(int fd, const sockaddr* address, socklen_t length) noexcept {
  const auto fault = draw(Call::connect, [] { return Choice{{}, {}, faults::kConnectHard}; });
  return fails(fault) ? -1 : ::connect(fd, address, length);
}

int eventfd(unsigned count, int flags) noexcept {
  const auto fault = draw(Call::eventfd, [] { return Choice{{}, {}, faults::kMakeHard}; });
  return fails(fault) ? -1 : ::eventfd(count, flags);
}

int epoll_create1(int flags) noexcept {
  const auto fault = draw(Call::epoll_create1, [] { return Choice{{}, {}, faults::kMakeHard}; });
  return fails(fault) ? -1 : ::epoll_create1(flags);
}

int epoll_ctl(int epoll, int operation, int fd, epoll_event* event) noexcept {
  // Only what adds an entry needs memory.
  const auto fault = draw(Call::epoll_ctl, [operation] {
    return operation == EPOLL_CTL_ADD ? Choice{{}, {}, faults::kAddHard} : Choice{};
  });
  return fails(fault) ? -1 : ::epoll_ctl(epoll, operation, fd, event);
}

int epoll_wait(int epoll, epoll_event* events, int capacity, int timeout) noexcept {
  const auto fault = draw(Call::epoll_wait, [] { return Choice{faults::kWaitBenign, {}, {}}; });
  const auto fewer = static_cast<int>(shortened(static_cast<std::size_t>(capacity), fault));
  return fails(fault) ? -1 : ::epoll_wait(epoll, events, fewer, timeout);
}

long epoll_pwait2(int epoll, epoll_event* events, int capacity,
                  const std::timespec* timeout) noexcept {
  const auto fault = draw(Call::epoll_pwait2, [] { return Choice{faults::kWaitBenign, {}, {}}; });
  const auto fewer = static_cast<int>(shortened(static_cast<std::size_t>(capacity), fault));
  return fails(fault) ? -1 : plain_epoll_pwait2(epoll, events, fewer, timeout);
}

}  // namespace cpploop::os::kernel

// ---- a ring's operations ----

namespace cpploop::os {

using faults::Call;
using faults::Choice;

bool RingFaults::spoils(RingOperation operation, int fd, std::uint64_t user_data,
                        std::size_t& size) {
  faults::Fault fault;
  switch (operation) {
    case RingOperation::receive:
      fault = faults::draw(Call::ring_receive, [] {
        return Choice{faults::kRingReceiveBenign, {}, faults::kRingReceiveHard};
      });
      break;
    case RingOperation::send:
      fault = faults::draw(Call::ring_send, [fd] { return faults::sending(fd); });
      size = faults::shortened(size, fault);
      break;
    case RingOperation::poll_in:
      fault = faults::draw(Call::ring_poll, [] {
        return Choice{faults::kRingPollBenign, {}, faults::kRingPollHard};
      });
      break;
    case RingOperation::poll_out:
      return false;  // A connection would count as made.
  }
  const bool spoilt =
      fault.what > 0 || (fault.what == faults::kShort && operation == RingOperation::poll_in);
  if (spoilt) {
    outcomes_.emplace_back(user_data, fault.what > 0 ? -fault.what : 0);
  }
  return spoilt;
}

std::int32_t RingFaults::outcome(std::uint64_t user_data, std::int32_t result) {
  const auto found =
      std::find_if(outcomes_.begin(), outcomes_.end(),
                   [user_data](const auto& entry) { return entry.first == user_data; });
  if (found == outcomes_.end()) {
    return result;
  }
  result = found->second;
  outcomes_.erase(found);
  return result;
}

std::size_t RingFaults::room_of(std::size_t size) noexcept {
  return faults::shortened(size, faults::draw(Call::ring_buffer, [] {
                             return Choice{faults::kRingBufferBenign, {}, {}};
                           }));
}

int RingFaults::of_enter(bool& waits) noexcept {
  const auto fault =
      faults::draw(Call::io_uring_enter, [] { return Choice{faults::kEnterBenign, {}, {}}; });
  waits = waits && fault.what != faults::kShort;
  return std::max(fault.what, 0);
}

int RingFaults::of_setup(bool deferred) noexcept {
  if (deferred) {
    const auto refusal = faults::draw(Call::ring_deferred, [] { return Choice{}; });
    if (refusal.what > 0) {
      return refusal.what;
    }
  }
  const auto fault =
      faults::draw(Call::io_uring_setup, [] { return Choice{{}, {}, faults::kMakeHard}; });
  return std::max(fault.what, 0);
}

}  // namespace cpploop::os

#endif

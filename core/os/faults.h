#pragma once

#ifdef CPPLOOP_FAULTS

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

// Faults on purpose, in builds with CPPLOOP_FAULTS only: the system calls of the engine fail or
// fall short at random, with what a kernel may really answer. The same seed gives the same faults
// to the same calls in the same order.
namespace cpploop::os::faults {

enum class Call : std::uint8_t {
  recv,
  recvfrom,
  recvmmsg,
  send,
  sendmsg,
  sendto,
  read,
  readv,
  write,
  writev,
  accept4,
  accept,
  connect,
  eventfd,
  epoll_create1,
  epoll_ctl,
  epoll_wait,
  epoll_pwait2,
  io_uring_setup,
  io_uring_enter,
  ring_deferred,
  // Of a ring, as they are prepared.
  ring_receive,
  ring_send,
  ring_poll,
  ring_buffer,
  count_,
};
inline constexpr std::size_t kCalls = static_cast<std::size_t>(Call::count_);

// What a fault does to the program above.
enum class Kind : std::uint8_t {
  // EINTR, EAGAIN of what receives, short reads, fewer events: nothing a protocol could notice.
  benign,
  // EAGAIN of what sends, short writes: only the level of the write buffer tells.
  pressure,
  // Errors that end a connection, or refuse to make one.
  hard,
};
inline constexpr std::size_t kKinds = 3;

// How many of a million calls meet a fault of each kind.
struct Rates {
  std::array<std::uint32_t, kKinds> per_million{};
};

struct Figures {
  std::uint64_t calls = 0;
  std::array<std::uint64_t, kKinds> injected{};
  std::uint64_t refused = 0;
};

// From here on. Before the first call the environment is asked: CPPLOOP_FAULT_SEED,
// CPPLOOP_FAULT_BENIGN, _PRESSURE and _HARD (shares of 1, each 0 by default).
void configure(std::uint64_t seed, const Rates& rates) noexcept;
// The calls of this name fail with `error` (ENOSYS or EPERM: an old kernel, a fence) and are not
// made; 0 ends that. False: there is no such call.
[[nodiscard]] bool refuse(std::string_view name, int error) noexcept;
[[nodiscard]] Figures figures() noexcept;

}  // namespace cpploop::os::faults

#endif

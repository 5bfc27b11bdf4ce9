#pragma once

#include <cstdint>

#ifdef CPPLOOP_FAULTS
#include <source_location>
#endif

// The account of the descriptors that are ours, by number and generation. It exists in builds with
// CPPLOOP_FAULTS: there a descriptor that is closed twice, or by somebody who does not own it, and
// an event that reaches a number which stands for another file by now end the process, with a
// message that names both places. In all other builds it is nothing, and costs nothing.
namespace cpploop::ledger {

#ifdef CPPLOOP_FAULTS

inline constexpr bool kKept = true;

using Place = std::source_location;

// What an owner (or somebody who watches a descriptor) keeps to show that it is the one it was.
struct Ticket {
  std::uint32_t generation = 0;  // 0: not in the account, and not checked.
  Place place;
};

struct Figures {
  std::uint64_t adopted = 0;
  std::uint64_t closed = 0;
  std::uint64_t given_away = 0;
  std::uint64_t owned = 0;  // Now.
  std::uint64_t events_checked = 0;
};

// `fd` is ours from here on.
[[nodiscard]] Ticket adopt(int fd, const Place& place) noexcept;
// It is somebody else's from here on. Harmless when its number has another owner of ours by now.
void give_away(int fd, const Ticket& ticket) noexcept;
// Before it is closed. Aborts unless it is still the ticket's.
void closes(int fd, const Ticket& ticket, const Place& place) noexcept;
// What the owner of `fd` has, for one who only watches it. Nobody of ours: a ticket without check.
[[nodiscard]] Ticket watch(int fd) noexcept;
// Before an event is delivered. Aborts if the number stands for another file by now.
void delivers(int fd, const Ticket& ticket) noexcept;
[[nodiscard]] Figures figures() noexcept;

#else

inline constexpr bool kKept = false;

struct Place {
  static constexpr Place current() noexcept { return {}; }
};
struct Ticket {};

[[nodiscard]] constexpr Ticket adopt(int, Place) noexcept { return {}; }
constexpr void give_away(int, Ticket) noexcept {}
constexpr void closes(int, Ticket, Place) noexcept {}
[[nodiscard]] constexpr Ticket watch(int) noexcept { return {}; }
constexpr void delivers(int, Ticket) noexcept {}

#endif

}  // namespace cpploop::ledger

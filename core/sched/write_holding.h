#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace cpploop {

// Knows when what callbacks write may be held until the other callbacks of their turn have run, so
// that the receivers of all of them are woken once. That pays where writing callbacks are far
// apart, because receivers fall asleep in between, or many. A few that come close behind each other
// had better be sent one by one: their receivers are awake, and work while this loop does.
//
// Callbacks that write are timed from their first write on, and those that follow while something
// is held; which of them were slow says what must not be held. Times are nanoseconds of the
// monotonic clock, never zero. Owned by the loop's thread.
class WriteHolding {
 public:
  // A held write waits this long at most, and for the end of the callback that runs then.
  static constexpr std::int64_t kLongestNs = 1'000'000;
  // A callback that goes on for longer is slow. Less is what a busy machine takes from a process at
  // a time.
  static constexpr std::int64_t kSlowNs = 10'000'000;
  // How far writing callbacks of a turn are from each other, the sends included where they are not
  // held: farther than the first, and holding pays; nearer than the second, and it does not any
  // more. A request to uvicorn has 12 µs and held 6, an echo 4 and held 2.
  static constexpr std::int64_t kFarNs = 8'000;
  static constexpr std::int64_t kNoLongerFarNs = 4'000;
  // So many in one turn are many for the next.
  static constexpr std::uint32_t kMany = 12;

  void allow(bool on) noexcept { allowed_ = on; }
  [[nodiscard]] bool allowed() const noexcept { return allowed_; }
  [[nodiscard]] bool pays() const noexcept { return far_apart_ || many_; }

  // Whether the end of the callback that runs is to be told by callback_over().
  [[nodiscard]] bool timing() const noexcept { return timed_since_ != 0; }
  void start_timing(std::int64_t now) noexcept { timed_since_ = now; }
  // The callback that runs writes.
  void note_writer() noexcept { writes_ = true; }
  // The first write is held; the callback that made it is being timed.
  void begin() noexcept { held_since_ = timed_since_; }

  // The callback of this serial, which was being timed, is over.
  void callback_over(std::uint64_t serial, std::int64_t now) noexcept {
    if (now - timed_since_ > kSlowNs) {
      last_slow_ = serial;
    }
    if (std::exchange(writes_, false)) {
      note_distance(now);
    }
    timed_since_ = now;
  }
  [[nodiscard]] bool held_long_enough(std::int64_t now) const noexcept {
    return now - held_since_ > kLongestNs;
  }
  // Nothing is held: the next callback is of no interest unless it writes.
  void stop_timing() noexcept { timed_since_ = 0; }

  void turn_over() noexcept {
    stop_timing();
    last_writer_over_ = 0;
    many_ = std::exchange(writers_, 0) >= kMany;
  }

  // Whether a callback was slow, of those that were timed since the one of this serial.
  [[nodiscard]] bool slow_since(std::uint64_t serial) const noexcept {
    return last_slow_ >= serial;
  }

 private:
  void note_distance(std::int64_t now) noexcept {
    constexpr std::int64_t kWeight = 16;
    ++writers_;
    const std::int64_t before = std::exchange(last_writer_over_, now);
    if (before == 0) {
      return;
    }
    // What takes long says no more than what is far.
    const std::int64_t distance = std::min(now - before, 4 * kFarNs);
    distance_ += (distance - distance_) / kWeight;
    far_apart_ = distance_ > (far_apart_ ? kNoLongerFarNs : kFarNs);
  }

  std::int64_t timed_since_ = 0;  // Zero: the callback that runs is not timed.
  std::int64_t held_since_ = 0;
  std::uint64_t last_slow_ = 0;
  std::int64_t last_writer_over_ = 0;  // Of this turn; zero: none yet.
  std::int64_t distance_ = 0;          // A moving average.
  std::uint32_t writers_ = 0;          // Of this turn.
  bool writes_ = false;                // The callback that runs.
  bool far_apart_ = false;
  bool many_ = false;
  bool allowed_ = true;
};

}  // namespace cpploop

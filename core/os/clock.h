#pragma once

#include <cstdint>
#include <ctime>

namespace cpploop {

inline constexpr std::int64_t kNanosecondsPerSecond = 1'000'000'000;
// Stands for "no deadline". Deadlines that would overflow are clamped just below it.
inline constexpr std::int64_t kNever = INT64_MAX;

// Where the engine reads the time. Its domain is time.monotonic()'s, in nanoseconds.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual std::int64_t now_ns() = 0;
};

// What time.monotonic() reads: macOS has another clock that does not stand still during sleep.
#ifdef __APPLE__
inline constexpr clockid_t kMonotonicClock = CLOCK_UPTIME_RAW;
#else
inline constexpr clockid_t kMonotonicClock = CLOCK_MONOTONIC;
#endif

[[nodiscard]] inline std::int64_t monotonic_now_ns() noexcept {
  std::timespec ts{};
  ::clock_gettime(kMonotonicClock, &ts);
  return static_cast<std::int64_t>(ts.tv_sec) * kNanosecondsPerSecond + ts.tv_nsec;
}

class MonotonicClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t now_ns() override { return monotonic_now_ns(); }
};

// A clock that stands still until a test moves it.
class FakeClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t now_ns() override { return now_ns_; }
  void advance(std::int64_t by_ns) noexcept { now_ns_ += by_ns; }
  void set(std::int64_t now_ns) noexcept { now_ns_ = now_ns; }

 private:
  std::int64_t now_ns_ = 0;
};

}  // namespace cpploop

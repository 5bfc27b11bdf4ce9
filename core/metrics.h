#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace cpploop {

// A number that one thread changes and any thread may read. No read-modify-write: as cheap as a
// plain one.
class Counter {
 public:
  explicit Counter(std::uint64_t value = 0) noexcept : value_(value) {}
  void add(std::uint64_t count = 1) noexcept { set(get() + count); }
  void set(std::uint64_t value) noexcept { value_.store(value, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t get() const noexcept {
    return value_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> value_;
};

// What the engine counts of its own work. A busy period lasts from one look at the kernel to the
// next: no event that comes in it can be noticed earlier, so its length bounds the loop's lag.
class Metrics {
 public:
  // Bucket i holds the busy periods of less than 2^i microseconds; the last holds the longer ones.
  static constexpr std::size_t kBusyBuckets = 24;

  Counter turns;
  Counter waits;     // Polls that were allowed to block.
  Counter wake_ups;  // Of those and other polls: ended or met by another thread.
  Counter events;    // What polls reported.
  Counter timers;    // Timers that became due.
  Counter ready_peak;
  Counter accepted;
  Counter bytes_received;
  Counter bytes_sent;
  Counter waited_ns;
  Counter busy_ns;
  std::array<Counter, kBusyBuckets> busy_periods;

  // Times are measured once somebody has asked for them: two looks at the clock a turn are more
  // than all the counting. Any thread.
  void measure_from(std::int64_t now_ns) noexcept {
    if (!measuring()) {
      looked_ns_.store(now_ns, std::memory_order_relaxed);
      measuring_.store(true, std::memory_order_relaxed);
    }
  }
  [[nodiscard]] bool measuring() const noexcept {
    return measuring_.load(std::memory_order_relaxed);
  }

  // While measuring. run() begins: the time since the last one was nobody's.
  void begin(std::int64_t now_ns) noexcept { looked_ns_.store(now_ns, std::memory_order_relaxed); }
  // The loop is about to look at the kernel: a busy period ends.
  void look(std::int64_t now_ns) noexcept {
    const std::uint64_t busy = since_look(now_ns);
    busy_ns.add(busy);
    const auto bucket = static_cast<std::size_t>(std::bit_width(busy / 1000));
    busy_periods[std::min(bucket, kBusyBuckets - 1)].add();
  }
  // A look that was allowed to block is over.
  void waited(std::int64_t now_ns) noexcept { waited_ns.add(since_look(now_ns)); }

 private:
  [[nodiscard]] std::uint64_t since_look(std::int64_t now_ns) noexcept {
    const std::int64_t since = now_ns - looked_ns_.load(std::memory_order_relaxed);
    begin(now_ns);
    return static_cast<std::uint64_t>(std::max<std::int64_t>(since, 0));
  }

  std::atomic<std::int64_t> looked_ns_{0};
  std::atomic<bool> measuring_{false};
};

}  // namespace cpploop

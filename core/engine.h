#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/backend/backend.h"
#include "core/backend/choice.h"
#include "core/metrics.h"
#include "core/net/readiness_watchers.h"
#include "core/os/clock.h"
#include "core/os/process.h"
#include "core/sched/ready_queue.h"
#include "core/sched/timer_heap.h"
#include "core/sched/wakeup_inbox.h"
#include "core/sched/write_holding.h"

namespace cpploop {

class StreamSocket;

// What the engine needs from whoever hosts it (the Python binding, or a test). The engine owns
// every token it was given until it hands it back through run() or drop().
class Host {
 public:
  virtual void run(Token token) = 0;
  virtual void drop(Token token) noexcept = 0;
  // Runs a watcher's callback, which stays the engine's.
  virtual void notify(Token token) = 0;
  // A timer left the heap, to be run or dropped next. True when it was cancelled.
  [[nodiscard]] virtual bool timer_left_heap(Token token) noexcept = 0;
  [[nodiscard]] virtual bool is_cancelled(Token token) const noexcept = 0;
  // Bracket a wait that can block. woke_up() may not return at all (see the binding), so nothing
  // above it is noexcept.
  virtual void about_to_block() noexcept = 0;
  virtual void woke_up() = 0;
  // A signal ended the wait.
  virtual void wait_interrupted() = 0;
  // Bracket the delivery of an I/O event while callbacks are being timed.
  virtual void io_begins() = 0;
  virtual void io_ended() = 0;
  // Many turns went by without a wait: time to look at signals and to let other threads in.
  virtual void stayed_busy() = 0;

 protected:
  ~Host() = default;
};

// The loop's mechanism: what is ready, what is due, what the kernel reports, and the turn that
// orders them. One thread owns it; only the inbox may be touched from others.
class Engine {
 public:
  // Throws std::system_error or std::bad_alloc.
  explicit Engine(Host& host, BackendChoice choice = BackendChoice::automatic);
  // For tests: another backend. `inbox` must be the one whose descriptor the backend watches.
  Engine(Host& host, std::unique_ptr<WakeupInbox> inbox, std::unique_ptr<Backend> backend);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  [[nodiscard]] Host& host() noexcept { return host_; }
  [[nodiscard]] Backend& backend() noexcept { return *backend_; }
  [[nodiscard]] ReadinessWatchers& watchers() noexcept { return watchers_; }
  [[nodiscard]] const ReadinessWatchers& watchers() const noexcept { return watchers_; }
  [[nodiscard]] TimerHeap& timers() noexcept { return timers_; }
  [[nodiscard]] WakeupInbox& inbox() noexcept { return *inbox_; }
  [[nodiscard]] ReadyQueue& ready() noexcept { return ready_; }

  // The loop's thread: appends behind everything posted so far, by any thread.
  void push_ready(const ReadyEntry& entry) {
    if (inbox_->has_posts()) [[unlikely]] {
      inbox_->drain_into(ready_);
    }
    ready_.push(entry);
  }
  // The loop's thread: runs it in the next turn, among what that turn's poll finds. Throws
  // std::bad_alloc.
  void push_with_next_events(NativeCallback& callback) { next_events_.push_back(&callback); }

  // Turns until stop() or interrupt(). 0, or the errno that the wait failed with.
  [[nodiscard]] int run();
  // One turn. The same result.
  [[nodiscard]] int turn();
  // One turn for a caller that drives the loop itself, also from within a callback that a turn is
  // running. The same result; whether stop() was called stays to be seen.
  [[nodiscard]] int turn_once();
  // Drops the callbacks that are ready and those of other threads; what the engine itself has
  // queued stays.
  void drop_ready_callbacks();
  // Drops every timer.
  void drop_timers();

  // The turn under way (or the next) is the last.
  void stop() noexcept { stopping_ = true; }
  [[nodiscard]] bool stopping() const noexcept { return stopping_; }
  void set_stopping(bool stopping) noexcept { stopping_ = stopping; }
  // An exception has to leave run(): nothing more is run; what is queued stays for the next run().
  void interrupt() noexcept { interrupted_ = true; }
  // Whether a callback that delivers several things may go on to the next of them.
  [[nodiscard]] bool may_go_on() const noexcept { return !stopping_ && !interrupted_ && !forked(); }
  [[nodiscard]] bool forked() const noexcept { return fork_generation_ != os::fork_generation(); }
  // The exception found another way out.
  void take_back_interrupt() noexcept { interrupted_ = false; }

  // Another source of time than the monotonic clock; null for that one.
  void set_clock(Clock* clock) noexcept { clock_ = clock; }
  [[nodiscard]] std::int64_t now_ns() const {
    return clock_ == nullptr ? monotonic_now_ns() : clock_->now_ns();
  }

  // For tests: what times the callbacks that write; null for the monotonic clock. Never the loop's
  // own clock, which may be a program's code and raise.
  void set_writing_clock(Clock* clock) noexcept { writing_clock_ = clock; }

  // Whether io_begins() and io_ended() are called.
  void time_callbacks(bool on) noexcept { timing_ = on; }

  // True while a callback of the loop's runs: only then are writes gathered.
  [[nodiscard]] bool in_callback() const noexcept { return in_callback_; }
  // Tells one callback from the next.
  [[nodiscard]] std::uint64_t callback_serial() const noexcept { return callback_serial_.get(); }
  // Any thread: whether the loop is between two waits, or in a poll that does not block.
  [[nodiscard]] bool busy() const noexcept { return busy_.load(std::memory_order_relaxed); }
  // For a socket's first write in the callback that runs.
  void note_writer() noexcept {
    if (!holding_.timing()) {
      holding_.start_timing(writing_now_ns());
    }
    holding_.note_writer();
  }
  [[nodiscard]] WriteHolding& holding() noexcept { return holding_; }
  // Whether what this callback writes may wait for the turn's other callbacks. One that is alone in
  // its turn would only wait for itself. Where the wait sends them all at no cost it always pays.
  [[nodiscard]] bool may_wait_for_turn() const noexcept {
    return holding_.allowed() && in_callback_ && (left_in_turn_ != 0 || has_held()) &&
           (holding_.pays() || backend_->batches_sends());
  }
  [[nodiscard]] bool last_of_turn() const noexcept {
    return left_in_turn_ == 0 || !holding_.allowed();
  }
  enum class Until : std::uint8_t { callback_ends, turn_ends };
  // Has the socket flushed then, or a millisecond later than now if that is sooner. Throws
  // std::bad_alloc.
  void hold_write(StreamSocket& socket, Until until);
  void cancel_flush(StreamSocket& socket) noexcept;
  // Sends everything that is held, by whatever callback of whatever socket.
  void send_held();

  // Drops every callback, timer and watcher and refuses posts. What the drops run sees an empty,
  // closed engine. Streams and listeners are detached by their owners.
  void close();
  [[nodiscard]] bool closed() const noexcept { return closed_; }
  // In a forked child, before anything else: from here on only close() and destruction make sense,
  // and neither touches what the parent shares.
  void abandon_after_fork() noexcept;

  [[nodiscard]] Metrics& metrics() noexcept { return metrics_; }

 private:
  static constexpr std::uint32_t kBusyTurnsMax = 128;
  static constexpr std::int64_t kLongestWaitNs = 24LL * 3600 * kNanosecondsPerSecond;

  void begin_busy_period() noexcept;
  void end_busy_period() noexcept;
  [[nodiscard]] std::vector<Token> take_timers();
  void discard_cancelled_timers();
  void compact_timers();
  [[nodiscard]] std::int64_t wait_limit_ns();
  [[nodiscard]] int poll();
  void queue_next_events();
  void queue_due_timers();
  void run_ready();
  void run_entry(const ReadyEntry& entry);
  void run_io(const ReadyEntry& entry);
  [[nodiscard]] bool has_held() const noexcept {
    return !flush_list_.empty() || backend_->has_sends_due();
  }
  [[nodiscard]] std::int64_t writing_now_ns() const noexcept {
    return writing_clock_ == nullptr ? monotonic_now_ns() : writing_clock_->now_ns();
  }
  void after_writing();
  void flush_gathered();
  void send_what_is_due();

  Host& host_;
  std::unique_ptr<WakeupInbox> inbox_;
  std::unique_ptr<Backend> backend_;
  ReadyQueue ready_;
  std::vector<NativeCallback*> next_events_;
  TimerHeap timers_;
  ReadinessWatchers watchers_;
  Clock* clock_ = nullptr;
  Clock* writing_clock_ = nullptr;
  std::vector<StreamSocket*> flush_list_;
  Metrics metrics_;
  Counter callback_serial_{1};
  std::atomic<bool> busy_{false};
  std::uint32_t busy_turns_ = 0;  // Since the last wait.
  std::size_t left_in_turn_ = 0;  // Callbacks of this turn behind the one that runs.
  WriteHolding holding_;
  bool flush_after_callback_ = false;
  const std::uint32_t fork_generation_ = os::fork_generation();
  bool in_callback_ = false;
  bool stopping_ = false;
  bool interrupted_ = false;
  bool timing_ = false;
  bool closed_ = false;
};

}  // namespace cpploop

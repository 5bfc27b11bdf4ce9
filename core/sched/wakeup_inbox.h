#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "core/os/wakeup.h"
#include "core/sched/ready_queue.h"

namespace cpploop {

// Callbacks from other threads, in the order they came. The consumer arms the inbox before it may
// block; the first producer that finds it armed disarms it and signals the loop, so a burst of N
// posts costs one system call. The lock guards the splice and nothing else. Making one throws
// std::system_error when the kernel has no descriptor to give.
class WakeupInbox {
 public:
  // The host calls nothing here from two threads at a time, as an interpreter with one lock for all
  // of them does: then there is no need of another.
  void callers_are_excluded() noexcept { locking_ = false; }

  [[nodiscard]] int fd() const noexcept { return wakeup_.fd(); }

  // Any thread. False once closed: the caller keeps the token. Throws std::bad_alloc.
  [[nodiscard]] bool post(const ReadyEntry& entry);
  // Any thread. Ends a wait without giving it anything to run.
  void wake() noexcept;

  // The loop's thread, a relaxed look that costs one load.
  [[nodiscard]] bool has_posts() const noexcept {
    return has_posts_.load(std::memory_order_acquire);
  }
  // The loop's thread. Appends everything posted to `queue`.
  void drain_into(ReadyQueue& queue);
  // The loop's thread. True if armed; false if something was posted or wake() came first, in which
  // case the caller must not block.
  [[nodiscard]] bool arm() noexcept;
  void disarm() noexcept;
  // The loop's thread, when the wait reported the descriptor.
  void acknowledge() noexcept;

  // The loop's thread. Posts fail from here on; what was posted stays for drain_into().
  void close() noexcept;
  // In a forked child, which has no thread but the calling one. A producer may have been caught
  // holding the lock; what it was changing is then left alone for ever.
  void abandon_after_fork() noexcept;

  template <typename Visitor>
  void for_each(Visitor visit) {
    const auto locked = lock();
    for (const ReadyEntry& entry : posts_) {
      visit(entry);
    }
  }

 private:
  [[nodiscard]] std::unique_lock<std::mutex> lock() noexcept {
    return locking_ ? std::unique_lock(mutex_) : std::unique_lock(mutex_, std::defer_lock);
  }
  void signal_if_armed() noexcept;

  std::mutex mutex_;
  std::vector<ReadyEntry> posts_;
  std::vector<ReadyEntry> spare_;  // Swapped with posts_ so that both keep their memory.
  bool locking_ = true;
  bool armed_ = false;
  bool woken_ = false;
  bool closed_ = false;
  std::atomic<bool> has_posts_{false};
  os::Wakeup wakeup_;
};

}  // namespace cpploop

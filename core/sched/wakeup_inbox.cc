#include "core/sched/wakeup_inbox.h"

#include <new>

namespace cpploop {

bool WakeupInbox::post(const ReadyEntry& entry) {
  const auto locked = lock();
  if (closed_) {
    return false;
  }
  posts_.push_back(entry);
  has_posts_.store(true, std::memory_order_release);
  signal_if_armed();
  return true;
}

void WakeupInbox::wake() noexcept {
  const auto locked = lock();
  woken_ = true;
  signal_if_armed();
}

void WakeupInbox::signal_if_armed() noexcept {
  if (armed_) {
    armed_ = false;
    // Under the lock, so that close() cannot take the descriptor away in between.
    wakeup_.signal();
  }
}

void WakeupInbox::drain_into(ReadyQueue& queue) {
  {
    const auto locked = lock();
    queue.reserve(posts_.size());
    posts_.swap(spare_);
    has_posts_.store(false, std::memory_order_relaxed);
  }
  for (const ReadyEntry& entry : spare_) {
    queue.push(entry);
  }
  spare_.clear();
}

bool WakeupInbox::arm() noexcept {
  const auto locked = lock();
  if (!posts_.empty() || woken_) {
    woken_ = false;
    return false;
  }
  armed_ = true;
  return true;
}

void WakeupInbox::disarm() noexcept {
  const auto locked = lock();
  armed_ = false;
  woken_ = false;
}

void WakeupInbox::acknowledge() noexcept { wakeup_.drain(); }

void WakeupInbox::abandon_after_fork() noexcept {
  if (mutex_.try_lock()) {
    mutex_.unlock();
  } else {
    // Made anew in place and not destroyed first: nobody is left to unlock the one, and the others
    // may be half changed.
    new (&mutex_) std::mutex;
    new (&posts_) std::vector<ReadyEntry>;
    new (&spare_) std::vector<ReadyEntry>;
    has_posts_.store(false, std::memory_order_relaxed);
  }
  closed_ = true;
  armed_ = false;  // The descriptor is the parent's as well: a signal would wake the parent.
}

void WakeupInbox::close() noexcept {
  const auto locked = lock();
  closed_ = true;
  armed_ = false;
  wakeup_.close();
}

}  // namespace cpploop

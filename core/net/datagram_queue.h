#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace cpploop {

struct QueuedDatagram {
  using Owner = void*;

  const char* data = nullptr;
  std::size_t size = 0;
  Owner owner = nullptr;   // Keeps the memory alive.
  bool addressed = false;  // The owner knows where it goes to, and sends it.
};

// Datagrams waiting for the kernel, each whole. Empty it holds no memory to speak of. Owned by the
// loop's thread.
class DatagramQueue {
 public:
  [[nodiscard]] bool empty() const noexcept { return head_ == items_.size(); }
  [[nodiscard]] std::size_t count() const noexcept { return items_.size() - head_; }

  // Throws std::bad_alloc.
  void push_back(const QueuedDatagram& item) {
    close_gap();
    items_.push_back(item);
  }

  [[nodiscard]] std::span<const QueuedDatagram> items() const noexcept {
    return std::span(items_).subspan(head_);
  }

  // The queue must not be empty.
  [[nodiscard]] QueuedDatagram pop_front() noexcept {
    const QueuedDatagram item = items_[head_++];
    if (head_ == items_.size() && items_.capacity() > kKeptCapacity) {
      std::vector<QueuedDatagram>().swap(items_);
      head_ = 0;
    }
    return item;
  }

  // Puts back what pop_front() gave. Throws std::bad_alloc, and then it is still the caller's.
  void push_front(const QueuedDatagram& item) {
    if (head_ > 0) {
      items_[--head_] = item;
    } else {
      items_.insert(items_.begin(), item);
    }
  }

 private:
  // More than this is given back when the queue runs empty.
  static constexpr std::size_t kKeptCapacity = 64;

  // Gives back the room of what has gone, each time for at least as many gone as are moved.
  void close_gap() noexcept {
    if (head_ == items_.size()) {
      items_.clear();
      head_ = 0;
    } else if (head_ > kKeptCapacity && head_ * 2 > items_.size()) {
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
  }

  std::vector<QueuedDatagram> items_;
  std::size_t head_ = 0;  // The items before it are gone.
};

}  // namespace cpploop

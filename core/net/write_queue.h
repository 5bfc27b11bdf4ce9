#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <vector>

namespace cpploop {

// Bytes waiting for the kernel, as references: every segment names the owner that keeps its memory
// alive, and the queue says when it is done with one. Empty it holds no memory to speak of: most of
// a server's connections are idle. Owned by the loop's thread.
class WriteQueue {
 public:
  using Owner = void*;

  [[nodiscard]] bool empty() const noexcept { return head_ == segments_.size(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return size_bytes_; }

  // `size` must not be zero: an empty segment could never be sent. Throws std::bad_alloc, and then
  // the owner is still the caller's.
  void push(const void* data, std::size_t size, Owner owner) {
    segments_.push_back(Segment{static_cast<const char*>(data), size, owner});
    size_bytes_ += size;
  }

  // Fills `parts` from the front; the result is the filled beginning.
  [[nodiscard]] std::span<const iovec> gather(std::span<iovec> parts) const noexcept {
    std::size_t count = 0;
    for (std::size_t i = head_; i < segments_.size() && count < parts.size(); ++i) {
      parts[count++] = iovec{const_cast<char*>(segments_[i].data), segments_[i].size};
    }
    return parts.first(count);
  }

  // Takes `sent` bytes off the front and calls done(owner) for each segment that went out whole.
  template <typename Done>
  void advance(std::size_t sent, Done done) {
    size_bytes_ -= sent;
    while (sent > 0) {
      Segment& front = segments_[head_];
      if (sent < front.size) {
        front.data += sent;
        front.size -= sent;
        return;
      }
      sent -= front.size;
      const Owner owner = front.owner;
      pop_front();
      done(owner);
    }
  }

  template <typename Done>
  void clear(Done done) {
    size_bytes_ = 0;
    while (!empty()) {
      const Owner owner = segments_[head_].owner;
      pop_front();
      done(owner);
    }
  }

 private:
  struct Segment {
    const char* data;
    std::size_t size;
    Owner owner;
  };

  // More than this is given back when the queue runs empty.
  static constexpr std::size_t kKeptCapacity = 64;

  void pop_front() noexcept {
    ++head_;
    if (head_ == segments_.size()) {
      head_ = 0;
      if (segments_.capacity() > kKeptCapacity) {
        std::vector<Segment>().swap(segments_);
      } else {
        segments_.clear();
      }
    } else if (head_ > kKeptCapacity && head_ * 2 > segments_.size()) {
      // A queue that never runs empty must not grow for ever: close the gap, each time for at least
      // as many segments gone as are moved.
      segments_.erase(segments_.begin(), segments_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
  }

  std::vector<Segment> segments_;
  std::size_t head_ = 0;  // The segments before it are gone.
  std::size_t size_bytes_ = 0;
};

}  // namespace cpploop

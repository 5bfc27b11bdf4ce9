#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <deque>
#include <span>

namespace cpploop {

// Bytes waiting for the kernel, as references: every segment names the owner that keeps its memory
// alive, and the queue says when it is done with one. Owned by the loop's thread.
class WriteQueue {
 public:
  using Owner = void*;

  [[nodiscard]] bool empty() const noexcept { return segments_.empty(); }
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
    for (const Segment& segment : segments_) {
      if (count == parts.size()) {
        break;
      }
      parts[count++] = iovec{const_cast<char*>(segment.data), segment.size};
    }
    return parts.first(count);
  }

  // Takes `sent` bytes off the front and calls done(owner) for each segment that went out whole.
  template <typename Done>
  void advance(std::size_t sent, Done done) {
    size_bytes_ -= sent;
    while (sent > 0) {
      Segment& front = segments_.front();
      if (sent < front.size) {
        front.data += sent;
        front.size -= sent;
        return;
      }
      sent -= front.size;
      const Owner owner = front.owner;
      segments_.pop_front();
      done(owner);
    }
  }

  template <typename Done>
  void clear(Done done) {
    size_bytes_ = 0;
    while (!segments_.empty()) {
      const Owner owner = segments_.front().owner;
      segments_.pop_front();
      done(owner);
    }
  }

 private:
  struct Segment {
    const char* data;
    std::size_t size;
    Owner owner;
  };

  std::deque<Segment> segments_;
  std::size_t size_bytes_ = 0;
};

}  // namespace cpploop

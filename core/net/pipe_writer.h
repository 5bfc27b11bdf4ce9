#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <climits>
#include <cstddef>

#include "core/backend/backend.h"
#include "core/net/write_queue.h"

namespace cpploop {

// The bytes that wait for a pipe, a terminal or whatever else a program writes to beside sockets.
// Unlike a stream socket it gathers nothing: others may write to the same pipe, and each write is
// to stay in one piece among theirs. It owns no descriptor and watches none: which of them a number
// stands for is its caller's business. Belongs to the loop's thread.
class PipeWriter {
 public:
  explicit PipeWriter(Backend& backend) noexcept : backend_(backend) {}

  [[nodiscard]] bool empty() const noexcept { return queue_.empty(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return queue_.size_bytes(); }

  // Writes at once what the kernel takes. Only while nothing is queued.
  [[nodiscard]] IoResult write(int fd, const void* data, std::size_t size) noexcept {
    assert(queue_.empty());
    const iovec part{const_cast<void*>(data), size};
    return nothing_if_full(backend_.write(fd, {&part, 1}));
  }

  // Throws std::bad_alloc, and then the owner is still the caller's.
  void queue(const void* data, std::size_t size, WriteQueue::Owner owner) {
    queue_.push(data, size, owner);
  }

  // One write from the front of the queue; the value is what the kernel took. What went out whole
  // is handed to drop(owner).
  template <typename Drop>
  [[nodiscard]] IoResult write_queued(int fd, Drop drop) {
    std::array<iovec, kPartsMax> parts;  // Filled only as far as it is used.
    const IoResult result = nothing_if_full(backend_.write(fd, queue_.gather(parts)));
    if (result.ok()) {
      queue_.advance(static_cast<std::size_t>(result.value), drop);
    }
    return result;
  }

  template <typename Drop>
  void clear(Drop drop) {
    queue_.clear(drop);
  }

 private:
  static constexpr std::size_t kPartsMax = std::min<std::size_t>(IOV_MAX, 256);

  [[nodiscard]] static IoResult nothing_if_full(IoResult result) noexcept {
    return result.would_block() ? IoResult::success(0) : result;
  }

  Backend& backend_;
  WriteQueue queue_;
};

}  // namespace cpploop

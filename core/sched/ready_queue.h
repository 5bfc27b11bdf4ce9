#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace cpploop {

// What the engine knows of a Python callback: nothing. The host made it and the host runs it.
using Token = void*;

// Names a descriptor's registration. The generation tells a registration from an earlier one that
// had the same slot, so that an event of the dead one is recognised and dropped.
struct ChannelId {
  std::uint32_t slot;
  std::uint32_t generation;

  [[nodiscard]] bool operator==(const ChannelId&) const noexcept = default;
};

// A callback of the engine's own or of the binding's, run from the ready queue like any other. The
// queue does not own it.
class NativeCallback {
 public:
  virtual void run() = 0;
  // Called instead of run() when the loop is closed with the callback still queued.
  virtual void drop() noexcept = 0;

 protected:
  ~NativeCallback() = default;
};

struct ReadyEntry {
  enum class Kind : std::uint32_t { token, native, io };

  union {
    Token token = nullptr;
    NativeCallback* native;
    ChannelId channel;
  };
  Kind kind = Kind::token;
  std::uint32_t io_events = 0;  // Meaningful for Kind::io alone: IoEvents bits.

  [[nodiscard]] static ReadyEntry of_token(Token token) noexcept {
    ReadyEntry entry{};
    entry.token = token;
    entry.kind = Kind::token;
    return entry;
  }
  [[nodiscard]] static ReadyEntry of_native(NativeCallback* native) noexcept {
    ReadyEntry entry{};
    entry.native = native;
    entry.kind = Kind::native;
    return entry;
  }
  [[nodiscard]] static ReadyEntry of_io(ChannelId channel, std::uint32_t io_events) noexcept {
    ReadyEntry entry{};
    entry.channel = channel;
    entry.kind = Kind::io;
    entry.io_events = io_events;
    return entry;
  }
};

// First in, first out, in a ring whose capacity is a power of two. Owned by the loop's thread.
class ReadyQueue {
 public:
  ReadyQueue() : ring_(std::make_unique<ReadyEntry[]>(kInitialCapacity)) {}

  [[nodiscard]] std::size_t size() const noexcept { return tail_ - head_; }
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }

  // Throws std::bad_alloc with the queue unchanged.
  void push(const ReadyEntry& entry) {
    if (size() == capacity_) [[unlikely]] {
      grow();
    }
    ring_[tail_ & (capacity_ - 1)] = entry;
    ++tail_;
  }

  // False, with the queue unchanged, when there is no memory for it.
  [[nodiscard]] bool push_front(const ReadyEntry& entry) noexcept {
    try {
      reserve(1);
    } catch (const std::bad_alloc&) {
      return false;
    }
    --head_;
    ring_[head_ & (capacity_ - 1)] = entry;
    return true;
  }

  [[nodiscard]] const ReadyEntry& front() const noexcept {
    assert(!empty());
    return ring_[head_ & (capacity_ - 1)];
  }
  [[nodiscard]] ReadyEntry pop() noexcept {
    const ReadyEntry entry = front();
    ++head_;
    return entry;
  }

  // Room for `count` more entries, so that the pushes that follow cannot fail.
  void reserve(std::size_t count) {
    while (capacity_ - size() < count) {
      grow();
    }
  }

  // Takes the host's callbacks out, for the caller to drop; the engine's own entries keep their
  // order. Throws std::bad_alloc with the queue unchanged.
  void take_tokens(std::vector<Token>& removed) {
    removed.reserve(removed.size() + size());
    std::size_t kept = head_;
    for (std::size_t i = head_; i != tail_; ++i) {
      const ReadyEntry entry = ring_[i & (capacity_ - 1)];
      if (entry.kind == ReadyEntry::Kind::token) {
        removed.push_back(entry.token);
      } else {
        ring_[kept++ & (capacity_ - 1)] = entry;
      }
    }
    tail_ = kept;
  }

  template <typename Visitor>
  void for_each(Visitor visit) const {
    for (std::size_t i = head_; i != tail_; ++i) {
      visit(ring_[i & (capacity_ - 1)]);
    }
  }

 private:
  static constexpr std::size_t kInitialCapacity = 64;

  void grow() {
    const std::size_t count = size();
    auto larger = std::make_unique<ReadyEntry[]>(capacity_ * 2);
    for (std::size_t i = 0; i < count; ++i) {
      larger[i] = ring_[(head_ + i) & (capacity_ - 1)];
    }
    ring_ = std::move(larger);
    capacity_ *= 2;
    head_ = 0;
    tail_ = count;
  }

  std::unique_ptr<ReadyEntry[]> ring_;
  std::size_t capacity_ = kInitialCapacity;
  // Counters that only grow; their difference is the size, their low bits the place in the ring.
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
};

}  // namespace cpploop

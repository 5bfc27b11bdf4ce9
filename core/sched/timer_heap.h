#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/sched/ready_queue.h"

namespace cpploop {

// Timers by (deadline, order of creation), so equal deadlines fire first in, first out. Cancelling
// is lazy: the host says that one entry died, and when more than half are dead they are swept out
// in one pass. The common pattern of setting a time-out and cancelling it soon leaves nothing
// behind, because an entry that is still last in the array is taken out at once. Owned by the
// loop's thread.
class TimerHeap {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] std::int64_t next_deadline_ns() const noexcept {
    assert(!empty());
    return entries_.front().deadline_ns;
  }
  [[nodiscard]] Token top() const noexcept { return entries_.front().token; }

  // Throws std::bad_alloc with the heap unchanged.
  void push(std::int64_t deadline_ns, Token token) {
    entries_.push_back(Entry{deadline_ns, next_sequence_++, token});
    sift_up(entries_.size() - 1);
  }

  [[nodiscard]] Token pop() noexcept {
    assert(!empty());
    const Token token = entries_.front().token;
    const Entry last = entries_.back();
    entries_.pop_back();
    if (!entries_.empty()) {
      sift_down_from_top(last);
    }
    return token;
  }

  // Takes `token` out if it is the last of the array, where that costs nothing. True if it did.
  [[nodiscard]] bool remove_if_last(Token token) noexcept {
    if (entries_.empty() || entries_.back().token != token) {
      return false;
    }
    entries_.pop_back();
    return true;
  }

  void note_cancelled() noexcept { ++cancelled_; }
  void note_cancelled_gone() noexcept {
    assert(cancelled_ > 0);
    --cancelled_;
  }
  [[nodiscard]] std::size_t cancelled() const noexcept { return cancelled_; }
  [[nodiscard]] bool wants_compaction() const noexcept {
    return entries_.size() > kCompactionMinimum && cancelled_ * 2 > entries_.size();
  }

  // Moves every dead entry's token into `removed`, whose memory is reserved before anything moves.
  template <typename IsCancelled>
  void compact(IsCancelled is_cancelled, std::vector<Token>& removed) {
    removed.reserve(removed.size() + entries_.size());
    std::size_t kept = 0;
    for (const Entry& entry : entries_) {
      if (is_cancelled(entry.token)) {
        removed.push_back(entry.token);
      } else {
        entries_[kept++] = entry;
      }
    }
    entries_.resize(kept);
    cancelled_ = 0;
    for (std::size_t i = kept / kArity + 1; i-- > 0;) {
      if (i < kept) {
        sift_down(i, entries_[i]);
      }
    }
  }

  // Empties the heap into `removed`, in no order.
  void take_all(std::vector<Token>& removed) {
    removed.reserve(removed.size() + entries_.size());
    for (const Entry& entry : entries_) {
      removed.push_back(entry.token);
    }
    entries_.clear();
    cancelled_ = 0;
  }

  template <typename Visitor>
  void for_each(Visitor visit) const {
    for (const Entry& entry : entries_) {
      visit(entry.token, entry.deadline_ns);
    }
  }

  // Every token, dead ones included, in the order in which they would fire. For looking on, not for
  // running: it copies and sorts. Throws std::bad_alloc.
  [[nodiscard]] std::vector<Token> in_order() const {
    std::vector<Entry> sorted = entries_;
    std::sort(sorted.begin(), sorted.end(),
              [](const Entry& left, const Entry& right) { return left.before(right); });
    std::vector<Token> tokens(sorted.size());
    std::transform(sorted.begin(), sorted.end(), tokens.begin(),
                   [](const Entry& entry) { return entry.token; });
    return tokens;
  }

 private:
  struct Entry {
    std::int64_t deadline_ns;
    std::uint64_t sequence;
    Token token;

    [[nodiscard]] bool before(const Entry& other) const noexcept {
      return deadline_ns != other.deadline_ns ? deadline_ns < other.deadline_ns
                                              : sequence < other.sequence;
    }
  };

  // Four children a node: half the levels of a binary heap, and the children share cache lines.
  static constexpr std::size_t kArity = 4;
  static constexpr std::size_t kCompactionMinimum = 100;

  void sift_up(std::size_t index) noexcept {
    const Entry moving = entries_[index];
    while (index > 0) {
      const std::size_t parent = (index - 1) / kArity;
      if (!moving.before(entries_[parent])) {
        break;
      }
      entries_[index] = entries_[parent];
      index = parent;
    }
    entries_[index] = moving;
  }

  [[nodiscard]] std::size_t smallest_child(std::size_t first) const noexcept {
    const std::size_t end = std::min(first + kArity, entries_.size());
    std::size_t best = first;
    for (std::size_t child = first + 1; child < end; ++child) {
      if (entries_[child].before(entries_[best])) {
        best = child;
      }
    }
    return best;
  }

  void sift_down(std::size_t index, const Entry moving) noexcept {
    for (;;) {
      const std::size_t first = index * kArity + 1;
      if (first >= entries_.size()) {
        break;
      }
      const std::size_t child = smallest_child(first);
      if (!entries_[child].before(moving)) {
        break;
      }
      entries_[index] = entries_[child];
      index = child;
    }
    entries_[index] = moving;
  }

  // After a pop the entry that takes the top's place came from the bottom, where it belongs again:
  // walk the hole down without comparing against it, then let it rise the little it must.
  void sift_down_from_top(const Entry& moving) noexcept {
    std::size_t index = 0;
    for (;;) {
      const std::size_t first = index * kArity + 1;
      if (first >= entries_.size()) {
        break;
      }
      const std::size_t child = smallest_child(first);
      entries_[index] = entries_[child];
      index = child;
    }
    entries_[index] = moving;
    sift_up(index);
  }

  std::vector<Entry> entries_;
  std::uint64_t next_sequence_ = 0;
  std::size_t cancelled_ = 0;
};

}  // namespace cpploop

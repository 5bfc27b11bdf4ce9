#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "core/sched/ready_queue.h"

namespace cpploop {

// Timers by (deadline, order of creation), so equal deadlines fire first in, first out. Cancelling
// is lazy: the host says that one entry died, and when more than half are dead they are swept out
// in one pass. The common pattern of setting a time-out and cancelling it soon leaves nothing
// behind, because an entry that is still last in the array is taken out at once.
//
// New timers stand in no order behind the heap until somebody asks which is next: those that are
// due or cancelled by then are never sifted, and many that fire together are sorted at once, which
// costs a fraction of taking them off a heap one by one. Owned by the loop's thread.
class TimerHeap {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] std::int64_t next_deadline_ns() noexcept {
    assert(!empty());
    grow_heap(entries_.size());
    return entries_.front().deadline_ns;
  }
  [[nodiscard]] Token top() noexcept {
    assert(!empty());
    grow_heap(entries_.size());
    return entries_.front().token;
  }

  // Throws std::bad_alloc with the heap unchanged.
  void push(std::int64_t deadline_ns, Token token) {
    entries_.push_back(Entry{deadline_ns, next_sequence_++, token});
    first_of_new_ns_ = std::min(first_of_new_ns_, deadline_ns);
  }

  [[nodiscard]] Token pop() noexcept {
    assert(!empty());
    grow_heap(entries_.size());
    move_top_behind_heap();
    const Token token = entries_.back().token;
    entries_.pop_back();
    return token;
  }

  // How many are due at `now_ns`. They are at hand in the order in which they fire, by due(), until
  // anything else is called, and stay timers until remove_due(), which is told how many they are.
  [[nodiscard]] std::size_t gather_due(std::int64_t now_ns) noexcept {
    const bool none =
        first_of_new_ns_ > now_ns && (heaped_ == 0 || entries_[0].deadline_ns > now_ns);
    if (none) [[likely]] {
      return 0;
    }
    const auto is_later = [now_ns](const Entry& entry) { return entry.deadline_ns > now_ns; };
    const auto first_due = std::partition(begin_of_new(), entries_.end(), is_later);
    grow_heap(static_cast<std::size_t>(first_due - entries_.begin()));
    if (many_due_in_heap(now_ns)) {
      const auto end_of_heap = begin_of_new();
      const auto kept = std::partition(entries_.begin(), end_of_heap, is_later);
      heaped_ = static_cast<std::size_t>(kept - entries_.begin());
      make_heap();
    }
    while (heaped_ != 0 && entries_[0].deadline_ns <= now_ns) {
      move_top_behind_heap();
    }
    sort_new();
    const std::size_t count = entries_.size() - heaped_;
    first_of_new_ns_ = count == 0 ? kNoDeadline : entries_[heaped_].deadline_ns;
    return count;
  }
  [[nodiscard]] Token due(std::size_t index) const noexcept {
    return entries_[heaped_ + index].token;
  }
  void remove_due(std::size_t count) noexcept {
    entries_.resize(entries_.size() - count);
    if (heaped_ == entries_.size()) {
      first_of_new_ns_ = kNoDeadline;
    }
  }

  // Takes `token` out if it is the last of the array, where that costs nothing. True if it did.
  [[nodiscard]] bool remove_if_last(Token token) noexcept {
    if (entries_.empty() || entries_.back().token != token) {
      return false;
    }
    entries_.pop_back();
    if (heaped_ >= entries_.size()) {
      heaped_ = entries_.size();
      first_of_new_ns_ = kNoDeadline;
    }
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
    heaped_ = 0;
    first_of_new_ns_ = kNoDeadline;
    for (const Entry& entry : entries_) {
      first_of_new_ns_ = std::min(first_of_new_ns_, entry.deadline_ns);
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
    heaped_ = 0;
    first_of_new_ns_ = kNoDeadline;
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

  using Iterator = std::vector<Entry>::iterator;

  // Four children a node: half the levels of a binary heap, and the children share cache lines.
  static constexpr std::size_t kArity = 4;
  static constexpr std::size_t kCompactionMinimum = 100;
  static constexpr std::int64_t kNoDeadline = std::numeric_limits<std::int64_t>::max();

  [[nodiscard]] Iterator begin_of_new() noexcept {
    return entries_.begin() + static_cast<std::ptrdiff_t>(heaped_);
  }

  // Takes the entries below `end` that are behind the heap into it.
  void grow_heap(std::size_t end) noexcept {
    if (end - heaped_ > heaped_) {
      heaped_ = end;
      make_heap();
    }
    while (heaped_ < end) {
      sift_up(heaped_++);
    }
    if (end == entries_.size()) {
      first_of_new_ns_ = kNoDeadline;
    }
  }

  void make_heap() noexcept {
    for (std::size_t i = heaped_ / kArity + 1; i-- > 0;) {
      if (i < heaped_) {
        sift_down(i, entries_[i]);
      }
    }
  }

  // Whether so much of the heap is due that going through all of it beats taking it off one by one.
  [[nodiscard]] bool many_due_in_heap(std::int64_t now_ns) const noexcept {
    constexpr std::size_t kManyMinimum = 64;
    constexpr std::size_t kManyShare = 16;
    const std::size_t many = std::max(kManyMinimum, heaped_ / kManyShare);
    return many <= heaped_ && due_in_heap(0, now_ns, many) == 0;
  }

  // `left` less the due entries at and below `index`, of which no more than that are looked at.
  [[nodiscard]] std::size_t due_in_heap(std::size_t index, std::int64_t now_ns,
                                        std::size_t left) const noexcept {
    if (index >= heaped_ || left == 0 || entries_[index].deadline_ns > now_ns) {
      return left;
    }
    --left;
    const std::size_t first = index * kArity + 1;
    for (std::size_t child = first; child < first + kArity; ++child) {
      left = due_in_heap(child, now_ns, left);
    }
    return left;
  }

  // Sorts what stands behind the heap. Deadlines that fire together lie in a short stretch of time:
  // spread over more buckets than a quarter of them, few are left to compare.
  void sort_new() noexcept {
    constexpr std::ptrdiff_t kBucketsPayFrom = 256;
    const auto before = [](const Entry& left, const Entry& right) { return left.before(right); };
    if (entries_.end() - begin_of_new() < kBucketsPayFrom || !sort_by_buckets(before)) {
      std::sort(begin_of_new(), entries_.end(), before);
    }
  }

  // False, with nothing changed, where there is no memory for it.
  template <typename Before>
  [[nodiscard]] bool sort_by_buckets(Before before) noexcept {
    const Iterator first = begin_of_new();
    const auto count = static_cast<std::size_t>(entries_.end() - first);
    const auto [least, most] = std::minmax_element(
        first, entries_.end(),
        [](const Entry& left, const Entry& right) { return left.deadline_ns < right.deadline_ns; });
    const auto origin = static_cast<std::uint64_t>(least->deadline_ns);
    const std::uint64_t range = static_cast<std::uint64_t>(most->deadline_ns) - origin;
    const int shift = std::max(
        0, static_cast<int>(std::bit_width(range)) - static_cast<int>(std::bit_width(count / 2)));
    const auto bucket_of = [origin, shift](const Entry& entry) {
      return static_cast<std::size_t>((static_cast<std::uint64_t>(entry.deadline_ns) - origin) >>
                                      shift);
    };
    try {
      // Where each bucket begins, and behind them all where the last ends.
      std::vector<std::size_t> ends((range >> shift) + 2);
      for (Iterator entry = first; entry != entries_.end(); ++entry) {
        ++ends[bucket_of(*entry) + 1];
      }
      for (std::size_t bucket = 1; bucket < ends.size(); ++bucket) {
        ends[bucket] += ends[bucket - 1];
      }
      const auto sorted = std::make_unique_for_overwrite<Entry[]>(count);
      for (Iterator entry = first; entry != entries_.end(); ++entry) {
        sorted[ends[bucket_of(*entry)]++] = *entry;
      }
      Entry* begin = sorted.get();
      for (std::size_t bucket = 0; bucket + 1 < ends.size(); ++bucket) {
        Entry* const end = sorted.get() + ends[bucket];
        std::sort(begin, end, before);
        begin = end;
      }
      std::copy(sorted.get(), begin, first);
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }

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
    const std::size_t end = std::min(first + kArity, heaped_);
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
      if (first >= heaped_) {
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

  // The first timer becomes the entry behind a heap that is one smaller. What takes its place came
  // from the bottom, where it belongs again: walk the hole down without comparing against it, then
  // let it rise the little it must.
  void move_top_behind_heap() noexcept {
    const Entry moving = entries_[--heaped_];
    entries_[heaped_] = entries_[0];
    if (heaped_ == 0) {
      return;
    }
    std::size_t index = 0;
    for (;;) {
      const std::size_t first = index * kArity + 1;
      if (first >= heaped_) {
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
  std::size_t heaped_ = 0;                      // So many of them, from the first, are a heap.
  std::int64_t first_of_new_ns_ = kNoDeadline;  // No deadline behind the heap is earlier.
  std::uint64_t next_sequence_ = 0;
  std::size_t cancelled_ = 0;
};

}  // namespace cpploop

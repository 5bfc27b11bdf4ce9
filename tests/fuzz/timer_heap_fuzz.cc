#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <vector>

#include "core/sched/timer_heap.h"
#include "tests/fuzz/operations.h"

// The timer heap against a multimap, which keeps equal deadlines in the order they came.

namespace {

using cpploop::Token;

[[nodiscard]] Token token_of(std::uintptr_t number) { return reinterpret_cast<Token>(number); }
[[nodiscard]] std::uintptr_t number_of(Token token) {
  return reinterpret_cast<std::uintptr_t>(token);
}

class Target {
 public:
  void push(std::int64_t deadline) {
    ++created_;
    heap_.push(deadline, token_of(created_));
    model_.emplace(deadline, created_);
  }

  void pop() {
    if (model_.empty()) {
      return;
    }
    const auto first = model_.begin();
    FUZZ_CHECK(heap_.next_deadline_ns() == first->first);
    FUZZ_CHECK(number_of(heap_.top()) == first->second);
    FUZZ_CHECK(number_of(heap_.pop()) == first->second);
    if (dead_.erase(first->second) != 0) {
      heap_.note_cancelled_gone();
    }
    model_.erase(first);
  }

  void take_due(std::int64_t now) {
    const std::size_t count = heap_.gather_due(now);
    for (std::size_t i = 0; i < count; ++i) {
      FUZZ_CHECK(!model_.empty());
      const auto first = model_.begin();
      FUZZ_CHECK(first->first <= now);
      FUZZ_CHECK(number_of(heap_.due(i)) == first->second);
      if (dead_.erase(first->second) != 0) {
        heap_.note_cancelled_gone();
      }
      model_.erase(first);
    }
    FUZZ_CHECK(model_.empty() || model_.begin()->first > now);
    heap_.remove_due(count);
  }

  void cancel(std::size_t choice) {
    if (model_.empty()) {
      return;
    }
    const auto victim =
        std::next(model_.begin(), static_cast<std::ptrdiff_t>(choice % model_.size()));
    if (dead_.contains(victim->second)) {
      return;
    }
    if (heap_.remove_if_last(token_of(victim->second))) {
      model_.erase(victim);
      return;
    }
    dead_.insert(victim->second);
    heap_.note_cancelled();
  }

  void compact() {
    std::vector<Token> removed;
    heap_.compact([this](Token token) { return dead_.contains(number_of(token)); }, removed);
    FUZZ_CHECK(removed.size() == dead_.size());
    for (const Token token : removed) {
      FUZZ_CHECK(dead_.erase(number_of(token)) == 1);
    }
    std::erase_if(model_, [&removed](const auto& entry) {
      return std::find(removed.begin(), removed.end(), token_of(entry.second)) != removed.end();
    });
  }

  void check() const {
    FUZZ_CHECK(heap_.size() == model_.size());
    FUZZ_CHECK(heap_.cancelled() == dead_.size());
    FUZZ_CHECK(heap_.empty() == model_.empty());
  }

  [[nodiscard]] bool wants_compaction() const { return heap_.wants_compaction(); }
  [[nodiscard]] bool empty() const { return model_.empty(); }

 private:
  cpploop::TimerHeap heap_;
  std::multimap<std::int64_t, std::uintptr_t> model_;
  std::set<std::uintptr_t> dead_;
  std::uintptr_t created_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  cpploop::fuzz::Operations operations(data, size);
  Target target;
  while (!operations.over()) {
    switch (operations.below(7)) {
      case 0:
        target.push(static_cast<std::int64_t>(operations.below(16)));
        break;
      case 1:
        // Spread over the whole range, its ends included.
        target.push(static_cast<std::int64_t>(static_cast<std::uint64_t>(operations.byte()) << 56 |
                                              operations.byte()));
        break;
      case 2:
        for (std::size_t count = operations.below(64); count > 0; --count) {
          target.push(static_cast<std::int64_t>(count % 5));
        }
        break;
      case 3:
        target.pop();
        break;
      case 4:
        target.cancel(operations.byte());
        break;
      case 5:
        target.take_due(static_cast<std::int64_t>(operations.below(16)));
        break;
      default:
        if (target.wants_compaction() || operations.below(4) == 0) {
          target.compact();
        }
        break;
    }
    target.check();
  }
  while (!target.empty()) {
    target.pop();
  }
  target.check();
  return 0;
}

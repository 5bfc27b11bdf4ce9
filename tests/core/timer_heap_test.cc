#include "core/sched/timer_heap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace cpploop {
namespace {

[[nodiscard]] Token token_of(std::uintptr_t number) { return reinterpret_cast<Token>(number); }
[[nodiscard]] std::uintptr_t number_of(Token token) {
  return reinterpret_cast<std::uintptr_t>(token);
}

TEST(TimerHeap, GivesTimersBackByDeadline) {
  TimerHeap heap;
  for (const std::int64_t deadline : {50, 10, 40, 20, 30}) {
    heap.push(deadline, token_of(static_cast<std::uintptr_t>(deadline)));
  }
  for (const std::uintptr_t expected : {10U, 20U, 30U, 40U, 50U}) {
    EXPECT_EQ(heap.next_deadline_ns(), static_cast<std::int64_t>(expected));
    EXPECT_EQ(number_of(heap.top()), expected);
    EXPECT_EQ(number_of(heap.pop()), expected);
  }
  EXPECT_TRUE(heap.empty());
}

TEST(TimerHeap, GivesEqualDeadlinesBackInTheOrderTheyCame) {
  TimerHeap heap;
  for (std::uintptr_t i = 0; i < 1000; ++i) {
    heap.push(static_cast<std::int64_t>(i % 3), token_of(i));
  }
  for (std::uintptr_t rest = 0; rest < 3; ++rest) {
    for (std::uintptr_t i = rest; i < 1000; i += 3) {
      ASSERT_EQ(number_of(heap.pop()), i);
    }
  }
}

TEST(TimerHeap, TakesDeadlinesAtTheEndsOfTheRange) {
  TimerHeap heap;
  heap.push(INT64_MAX, token_of(3));
  heap.push(INT64_MIN, token_of(1));
  heap.push(0, token_of(2));
  EXPECT_EQ(number_of(heap.pop()), 1U);
  EXPECT_EQ(number_of(heap.pop()), 2U);
  EXPECT_EQ(number_of(heap.pop()), 3U);
}

TEST(TimerHeap, RemovesTheLastOfTheArrayAtOnceAndNothingElse) {
  TimerHeap heap;
  heap.push(1, token_of(1));
  heap.push(2, token_of(2));
  heap.push(3, token_of(3));
  EXPECT_FALSE(heap.remove_if_last(token_of(1)));
  EXPECT_FALSE(heap.remove_if_last(token_of(99)));
  EXPECT_TRUE(heap.remove_if_last(token_of(3)));
  EXPECT_FALSE(heap.remove_if_last(token_of(3)));
  EXPECT_EQ(heap.size(), 2U);
  EXPECT_EQ(number_of(heap.pop()), 1U);
  EXPECT_EQ(number_of(heap.pop()), 2U);
  EXPECT_FALSE(heap.remove_if_last(token_of(2)));
}

TEST(TimerHeap, TimeoutsThatAreCancelledAtOnceLeaveNothingBehind) {
  TimerHeap heap;
  heap.push(5, token_of(1'000'000));
  for (std::uintptr_t i = 0; i < 1000; ++i) {
    heap.push(1000 + static_cast<std::int64_t>(i), token_of(i));
    ASSERT_TRUE(heap.remove_if_last(token_of(i)));
  }
  EXPECT_EQ(heap.size(), 1U);
  EXPECT_EQ(heap.cancelled(), 0U);
}

TEST(TimerHeap, WantsCompactionWhenMoreThanHalfOfManyAreDead) {
  TimerHeap heap;
  for (std::uintptr_t i = 0; i < 200; ++i) {
    heap.push(static_cast<std::int64_t>(i), token_of(i));
  }
  for (int i = 0; i < 100; ++i) {
    heap.note_cancelled();
  }
  EXPECT_FALSE(heap.wants_compaction());
  heap.note_cancelled();
  EXPECT_TRUE(heap.wants_compaction());
  heap.note_cancelled_gone();
  EXPECT_FALSE(heap.wants_compaction());
}

TEST(TimerHeap, LeavesSmallHeapsAlone) {
  TimerHeap heap;
  for (std::uintptr_t i = 0; i < 100; ++i) {
    heap.push(static_cast<std::int64_t>(i), token_of(i));
    heap.note_cancelled();
  }
  EXPECT_FALSE(heap.wants_compaction());
}

TEST(TimerHeap, CompactionTakesTheDeadOutAndKeepsTheOrderOfTheRest) {
  for (const std::uintptr_t size : {0U, 1U, 2U, 4U, 5U, 6U, 101U, 1000U}) {
    TimerHeap heap;
    for (std::uintptr_t i = 0; i < size; ++i) {
      heap.push(static_cast<std::int64_t>((i * 7919) % 101), token_of(i));
    }
    std::vector<Token> removed{token_of(123'456)};
    heap.compact([](Token token) { return number_of(token) % 3 != 0; }, removed);
    EXPECT_EQ(removed.size() - 1, size - (size + 2) / 3);
    EXPECT_EQ(number_of(removed.front()), 123'456U);
    EXPECT_EQ(heap.cancelled(), 0U);
    std::pair<std::int64_t, std::uintptr_t> last{INT64_MIN, 0};
    while (!heap.empty()) {
      const std::int64_t deadline = heap.next_deadline_ns();
      const std::uintptr_t number = number_of(heap.pop());
      ASSERT_EQ(number % 3, 0U);
      ASSERT_LE(last, (std::pair{deadline, number}));
      last = {deadline, number};
    }
  }
}

TEST(TimerHeap, TakeAllEmptiesItAndForgetsTheDead) {
  TimerHeap heap;
  heap.push(1, token_of(1));
  heap.push(2, token_of(2));
  heap.note_cancelled();
  std::vector<Token> removed;
  heap.take_all(removed);
  EXPECT_EQ(removed.size(), 2U);
  EXPECT_TRUE(heap.empty());
  EXPECT_EQ(heap.cancelled(), 0U);
}

TEST(TimerHeap, VisitsEveryTimerOnce) {
  TimerHeap heap;
  for (std::uintptr_t i = 0; i < 50; ++i) {
    heap.push(static_cast<std::int64_t>(100 - i), token_of(i));
  }
  std::set<std::uintptr_t> seen;
  heap.for_each([&](Token token, std::int64_t deadline) {
    EXPECT_EQ(deadline, static_cast<std::int64_t>(100 - number_of(token)));
    EXPECT_TRUE(seen.insert(number_of(token)).second);
  });
  EXPECT_EQ(seen.size(), 50U);
}

TEST(TimerHeap, LooksInOrderWithoutChangingAnything) {
  TimerHeap heap;
  for (std::uintptr_t i = 0; i < 50; ++i) {
    heap.push(static_cast<std::int64_t>(i % 7), token_of(i));
  }
  const std::vector<Token> looked = heap.in_order();
  ASSERT_EQ(looked.size(), heap.size());
  for (const Token token : looked) {
    ASSERT_EQ(heap.pop(), token);
  }
}

// std::multimap keeps equal keys in the order they were inserted, which is the order promised here.
class TimerModel {
 public:
  void push(std::int64_t deadline, std::uintptr_t number) {
    heap_.push(deadline, token_of(number));
    model_.emplace(deadline, number);
    order_.push_back(number);
  }
  void pop() {
    if (model_.empty()) {
      ASSERT_TRUE(heap_.empty());
      return;
    }
    ASSERT_EQ(heap_.next_deadline_ns(), model_.begin()->first);
    ASSERT_EQ(number_of(heap_.pop()), model_.begin()->second);
    if (dead_.erase(model_.begin()->second) != 0) {
      heap_.note_cancelled_gone();
    }
    model_.erase(model_.begin());
  }
  void cancel(std::size_t choice) {
    if (model_.empty()) {
      return;
    }
    auto victim = model_.begin();
    std::advance(victim, static_cast<std::ptrdiff_t>(choice % model_.size()));
    if (dead_.contains(victim->second)) {
      return;
    }
    if (heap_.remove_if_last(token_of(victim->second))) {
      model_.erase(victim);
      return;
    }
    dead_.insert(victim->second);
    heap_.note_cancelled();
    if (heap_.wants_compaction()) {
      compact();
    }
  }
  void compact() {
    std::vector<Token> removed;
    heap_.compact([this](Token token) { return dead_.contains(number_of(token)); }, removed);
    ASSERT_EQ(removed.size(), dead_.size());
    std::erase_if(model_, [this](const auto& entry) { return dead_.contains(entry.second); });
    dead_.clear();
    ++compactions_;
  }
  void check() const {
    ASSERT_EQ(heap_.size(), model_.size());
    ASSERT_EQ(heap_.cancelled(), dead_.size());
  }
  [[nodiscard]] std::size_t size() const { return model_.size(); }
  [[nodiscard]] int compactions() const { return compactions_; }

 private:
  TimerHeap heap_;
  std::multimap<std::int64_t, std::uintptr_t> model_;
  std::set<std::uintptr_t> dead_;
  std::vector<std::uintptr_t> order_;
  int compactions_ = 0;
};

// What is due at `now`, taken out.
std::vector<std::uintptr_t> take_due(TimerHeap& heap, std::int64_t now) {
  const std::size_t count = heap.gather_due(now);
  std::vector<std::uintptr_t> due(count);
  for (std::size_t i = 0; i < count; ++i) {
    due[i] = reinterpret_cast<std::uintptr_t>(heap.due(i));
  }
  heap.remove_due(count);
  return due;
}

TEST(TimerHeap, WhatIsNotDueStaysWhereNothingIs) {
  TimerHeap heap;
  heap.push(5, reinterpret_cast<Token>(1));
  EXPECT_TRUE(take_due(heap, 4).empty());
  EXPECT_EQ(heap.size(), 1U);
  EXPECT_EQ(take_due(heap, 5), (std::vector<std::uintptr_t>{1}));
  EXPECT_TRUE(heap.empty());
}

TEST(TimerHeap, DueTimersThatAreNotTakenAreDueAgain) {
  TimerHeap heap;
  heap.push(2, reinterpret_cast<Token>(1));
  heap.push(9, reinterpret_cast<Token>(2));
  heap.push(1, reinterpret_cast<Token>(3));
  ASSERT_EQ(heap.gather_due(5), 2U);
  heap.push(1, reinterpret_cast<Token>(4));
  EXPECT_EQ(take_due(heap, 5), (std::vector<std::uintptr_t>{3, 4, 1}));
  EXPECT_EQ(heap.next_deadline_ns(), 9);
}

// Few and many, narrow and wide, from the heap, from behind it and from both.
TEST(TimerHeap, GathersTheDueInOrderUnderRandomUse) {
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937_64 random(seed);
    TimerHeap heap;
    std::multimap<std::int64_t, std::uintptr_t> model;
    std::uintptr_t made = 0;
    std::int64_t now = 0;
    const std::uint64_t spread = std::uint64_t{1} << (random() % 40);
    for (int step = 0; step < 40; ++step) {
      for (std::uint64_t count = random() % (step % 8 == 0 ? 3000 : 30); count > 0; --count) {
        const std::int64_t deadline = now + static_cast<std::int64_t>(random() % spread);
        heap.push(deadline, reinterpret_cast<Token>(++made));
        model.emplace(deadline, made);
      }
      if (random() % 3 == 0 && !model.empty()) {
        ASSERT_EQ(heap.next_deadline_ns(), model.begin()->first);
      }
      now += static_cast<std::int64_t>(random() % spread);
      std::vector<std::uintptr_t> expected;
      while (!model.empty() && model.begin()->first <= now) {
        expected.push_back(model.begin()->second);
        model.erase(model.begin());
      }
      ASSERT_EQ(take_due(heap, now), expected) << "seed " << seed << ", step " << step;
      ASSERT_EQ(heap.size(), model.size());
    }
  }
}

TEST(TimerHeap, BehavesAsAMultimapDoesUnderRandomUse) {
  int compactions = 0;
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    std::mt19937 random(seed);
    TimerModel model;
    for (std::uintptr_t step = 1; step <= 6000; ++step) {
      const auto choice = random() % 100;
      if (choice < (step < 3000 ? 55U : 35U)) {
        // Few different deadlines, so that equal ones are common.
        model.push(static_cast<std::int64_t>(random() % 64), step);
      } else if (choice < 65) {
        model.pop();
      } else {
        model.cancel(random());
      }
      model.check();
      if (HasFatalFailure()) {
        FAIL() << "seed " << seed << ", step " << step;
      }
    }
    while (model.size() != 0) {
      model.pop();
      if (HasFatalFailure()) {
        FAIL() << "seed " << seed << ", while emptying";
      }
    }
    compactions += model.compactions();
  }
  EXPECT_GT(compactions, 0) << "the property was never tested across a compaction";
}

}  // namespace
}  // namespace cpploop

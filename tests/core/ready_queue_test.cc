#include "core/sched/ready_queue.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <vector>

namespace cpploop {
namespace {

[[nodiscard]] Token token_of(std::uintptr_t number) { return reinterpret_cast<Token>(number); }

[[nodiscard]] std::uintptr_t number_of(const ReadyEntry& entry) {
  return reinterpret_cast<std::uintptr_t>(entry.token);
}

TEST(ReadyQueue, IsEmptyAtFirst) {
  const ReadyQueue queue;
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.size(), 0U);
}

TEST(ReadyQueue, KeepsEachKindOfEntryWhole) {
  ReadyQueue queue;
  int object = 0;
  auto* native = reinterpret_cast<NativeCallback*>(&object);
  queue.push(ReadyEntry::of_token(token_of(7)));
  queue.push(ReadyEntry::of_native(native));
  queue.push(ReadyEntry::of_io({3, 9}, 2));
  EXPECT_EQ(number_of(queue.pop()), 7U);
  const ReadyEntry second = queue.pop();
  EXPECT_EQ(second.kind, ReadyEntry::Kind::native);
  EXPECT_EQ(second.native, native);
  const ReadyEntry third = queue.pop();
  EXPECT_EQ(third.kind, ReadyEntry::Kind::io);
  EXPECT_EQ(third.channel.slot, 3U);
  EXPECT_EQ(third.channel.generation, 9U);
  EXPECT_EQ(third.io_events, 2U);
}

TEST(ReadyQueue, KeepsTheOrderWhileTheRingWraps) {
  ReadyQueue queue;
  std::uintptr_t in = 0;
  std::uintptr_t out = 0;
  // Forty at most inside, so that the ring of 64 is never full and wraps often.
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 40; ++i) {
      queue.push(ReadyEntry::of_token(token_of(++in)));
    }
    for (int i = 0; i < 40; ++i) {
      ASSERT_EQ(number_of(queue.pop()), ++out);
    }
  }
  EXPECT_TRUE(queue.empty());
}

TEST(ReadyQueue, KeepsTheOrderWhenItGrowsWhileWrapped) {
  ReadyQueue queue;
  std::uintptr_t in = 0;
  std::uintptr_t out = 0;
  for (int i = 0; i < 50; ++i) {
    queue.push(ReadyEntry::of_token(token_of(++in)));
  }
  for (int i = 0; i < 45; ++i) {
    ASSERT_EQ(number_of(queue.pop()), ++out);
  }
  for (int i = 0; i < 1000; ++i) {
    queue.push(ReadyEntry::of_token(token_of(++in)));
  }
  EXPECT_EQ(queue.size(), 1005U);
  while (!queue.empty()) {
    ASSERT_EQ(number_of(queue.pop()), ++out);
  }
  EXPECT_EQ(out, in);
}

TEST(ReadyQueue, TakesBackWhatWasPopped) {
  ReadyQueue queue;
  for (std::uintptr_t i = 1; i <= 64; ++i) {
    queue.push(ReadyEntry::of_token(token_of(i)));
  }
  const ReadyEntry first = queue.pop();
  queue.push(ReadyEntry::of_token(token_of(65)));
  ASSERT_TRUE(queue.push_front(first)) << "the ring is full and grows";
  ASSERT_EQ(queue.size(), 65U);
  for (std::uintptr_t i = 1; i <= 65; ++i) {
    EXPECT_EQ(number_of(queue.pop()), i);
  }
}

TEST(ReadyQueue, PutsAnEntryInFrontWhenNoneWasPopped) {
  ReadyQueue queue;
  ASSERT_TRUE(queue.push_front(ReadyEntry::of_token(token_of(2))));
  ASSERT_TRUE(queue.push_front(ReadyEntry::of_token(token_of(1))));
  EXPECT_EQ(number_of(queue.pop()), 1U);
  EXPECT_EQ(number_of(queue.pop()), 2U);
  EXPECT_TRUE(queue.empty());
}

TEST(ReadyQueue, ReserveKeepsWhatIsQueued) {
  ReadyQueue queue;
  queue.push(ReadyEntry::of_token(token_of(1)));
  queue.reserve(10'000);
  queue.reserve(0);
  queue.push(ReadyEntry::of_token(token_of(2)));
  EXPECT_EQ(queue.size(), 2U);
  EXPECT_EQ(number_of(queue.pop()), 1U);
  EXPECT_EQ(number_of(queue.pop()), 2U);
}

TEST(ReadyQueue, VisitsEveryEntryInOrderAlsoWhenWrapped) {
  ReadyQueue queue;
  for (std::uintptr_t i = 0; i < 60; ++i) {
    queue.push(ReadyEntry::of_token(token_of(i)));
  }
  for (int i = 0; i < 60; ++i) {
    (void)queue.pop();
  }
  for (std::uintptr_t i = 0; i < 20; ++i) {
    queue.push(ReadyEntry::of_token(token_of(100 + i)));
  }
  std::vector<std::uintptr_t> seen;
  queue.for_each([&](const ReadyEntry& entry) { seen.push_back(number_of(entry)); });
  ASSERT_EQ(seen.size(), 20U);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i], 100 + i);
  }
}

TEST(ReadyQueue, GivesUpItsTokensAndKeepsTheRestInOrder) {
  ReadyQueue queue;
  for (int i = 0; i < 50; ++i) {
    queue.push(ReadyEntry::of_token(token_of(0)));
    (void)queue.pop();
  }
  for (std::uint32_t i = 0; i < 20; ++i) {
    queue.push(ReadyEntry::of_token(token_of(i)));
    queue.push(ReadyEntry::of_io({i, 1}, 1U));
  }
  std::vector<Token> removed;
  queue.take_tokens(removed);
  ASSERT_EQ(removed.size(), 20U);
  EXPECT_EQ(removed.front(), token_of(0));
  EXPECT_EQ(removed.back(), token_of(19));
  ASSERT_EQ(queue.size(), 20U);
  for (std::uint32_t i = 0; i < 20; ++i) {
    const ReadyEntry entry = queue.pop();
    EXPECT_EQ(entry.kind, ReadyEntry::Kind::io);
    EXPECT_EQ(entry.channel.slot, i);
  }
}

TEST(ReadyQueue, BehavesAsADequeDoesUnderRandomUse) {
  ReadyQueue queue;
  std::deque<std::uintptr_t> model;
  std::mt19937 random(12345);  // A fixed seed: a failure must come back.
  for (std::uintptr_t step = 0; step < 50'000; ++step) {
    // Phases that fill and phases that empty, so that growth and emptiness both happen.
    const bool fills = (step / 500) % 2 == 0;
    if (random() % 10 < (fills ? 7U : 3U)) {
      queue.push(ReadyEntry::of_token(token_of(step)));
      model.push_back(step);
    } else if (!model.empty()) {
      ASSERT_EQ(number_of(queue.pop()), model.front());
      model.pop_front();
    }
    ASSERT_EQ(queue.size(), model.size());
  }
}

}  // namespace
}  // namespace cpploop

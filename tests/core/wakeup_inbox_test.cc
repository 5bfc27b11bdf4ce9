#include "core/sched/wakeup_inbox.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

namespace cpploop {
namespace {

[[nodiscard]] ReadyEntry entry_of(std::uintptr_t number) {
  return ReadyEntry::of_token(reinterpret_cast<Token>(number));
}

[[nodiscard]] std::uintptr_t number_of(const ReadyEntry& entry) {
  return reinterpret_cast<std::uintptr_t>(entry.token);
}

// How often the loop was signalled since the last look: an eventfd's counter counts the system
// calls, and so does a pipe by its bytes.
[[nodiscard]] std::uint64_t signals(const WakeupInbox& inbox) {
#if CPPLOOP_HAVE_EVENTFD
  std::uint64_t count = 0;
  return ::read(inbox.fd(), &count, sizeof(count)) == sizeof(count) ? count : 0;
#else
  char bytes[64];
  return static_cast<std::uint64_t>(std::max<ssize_t>(::read(inbox.fd(), bytes, sizeof(bytes)), 0));
#endif
}

[[nodiscard]] bool wait_readable(int fd, int timeout_ms) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, timeout_ms) == 1;
}

TEST(WakeupInbox, HandsPostsOverInOrderBehindWhatIsQueued) {
  WakeupInbox inbox;
  ReadyQueue queue;
  queue.push(entry_of(1));
  EXPECT_FALSE(inbox.has_posts());
  EXPECT_TRUE(inbox.post(entry_of(2)));
  EXPECT_TRUE(inbox.post(entry_of(3)));
  EXPECT_TRUE(inbox.has_posts());
  inbox.drain_into(queue);
  EXPECT_FALSE(inbox.has_posts());
  for (const std::uintptr_t expected : {1U, 2U, 3U}) {
    EXPECT_EQ(number_of(queue.pop()), expected);
  }
  inbox.drain_into(queue);
  EXPECT_TRUE(queue.empty());
}

TEST(WakeupInbox, PostsToAnAwakeConsumerCostNoSystemCall) {
  WakeupInbox inbox;
  for (std::uintptr_t i = 0; i < 100; ++i) {
    EXPECT_TRUE(inbox.post(entry_of(i)));
  }
  EXPECT_EQ(signals(inbox), 0U);
}

TEST(WakeupInbox, BurstToASleepingConsumerCostsOneSystemCall) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  for (std::uintptr_t i = 0; i < 1000; ++i) {
    EXPECT_TRUE(inbox.post(entry_of(i)));
  }
  EXPECT_EQ(signals(inbox), 1U);
}

TEST(WakeupInbox, ArmRefusesWhilePostsWait) {
  WakeupInbox inbox;
  EXPECT_TRUE(inbox.post(entry_of(1)));
  EXPECT_FALSE(inbox.arm());
  EXPECT_TRUE(inbox.post(entry_of(2)));
  EXPECT_EQ(signals(inbox), 0U) << "a refused arm() must not leave the inbox armed";
  ReadyQueue queue;
  inbox.drain_into(queue);
  EXPECT_TRUE(inbox.arm());
}

TEST(WakeupInbox, DisarmedInboxIsNotSignalled) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  inbox.disarm();
  EXPECT_TRUE(inbox.post(entry_of(1)));
  EXPECT_EQ(signals(inbox), 0U);
}

TEST(WakeupInbox, WakeBeforeArmIsNotLost) {
  WakeupInbox inbox;
  inbox.wake();
  EXPECT_FALSE(inbox.arm());
  EXPECT_TRUE(inbox.arm()) << "one wake() ends one wait";
}

TEST(WakeupInbox, WakeSignalsASleepingConsumerOnce) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  inbox.wake();
  inbox.wake();
  EXPECT_EQ(signals(inbox), 1U);
  inbox.disarm();
  EXPECT_TRUE(inbox.arm());
}

TEST(WakeupInbox, AcknowledgeTakesTheSignalAway) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  inbox.wake();
  EXPECT_TRUE(wait_readable(inbox.fd(), 0));
  inbox.acknowledge();
  EXPECT_FALSE(wait_readable(inbox.fd(), 0));
  inbox.acknowledge();
}

TEST(WakeupInbox, ClosedInboxRefusesPostsAndKeepsWhatItHas) {
  WakeupInbox inbox;
  EXPECT_TRUE(inbox.post(entry_of(1)));
  inbox.close();
  EXPECT_FALSE(inbox.post(entry_of(2)));
  inbox.wake();
  inbox.close();
  EXPECT_EQ(inbox.fd(), -1);
  ReadyQueue queue;
  inbox.drain_into(queue);
  EXPECT_EQ(queue.size(), 1U);
}

TEST(WakeupInbox, ClosingAnArmedInboxNeverSignalsWhatHasItsNumberNext) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  inbox.close();
  const WakeupInbox other;  // Gets the number that has just become free.
  EXPECT_FALSE(inbox.post(entry_of(1)));
  inbox.wake();
  EXPECT_EQ(signals(other), 0U);
}

TEST(WakeupInbox, VisitsWhatWaits) {
  WakeupInbox inbox;
  EXPECT_TRUE(inbox.post(entry_of(4)));
  EXPECT_TRUE(inbox.post(entry_of(5)));
  std::uintptr_t sum = 0;
  inbox.for_each([&](const ReadyEntry& entry) { sum += number_of(entry); });
  EXPECT_EQ(sum, 9U);
}

// Producers post numbered entries while the consumer arms, sleeps, and drains, as the engine does.
TEST(WakeupInbox, ManyProducersLoseNothingAndKeepTheirOrder) {
  constexpr std::uintptr_t kProducers = 8;
  constexpr std::uintptr_t kPosts = 3000;
  WakeupInbox inbox;
  ReadyQueue queue;
  std::vector<std::thread> producers;
  for (std::uintptr_t producer = 0; producer < kProducers; ++producer) {
    producers.emplace_back([&inbox, producer] {
      for (std::uintptr_t i = 0; i < kPosts; ++i) {
        EXPECT_TRUE(inbox.post(entry_of(producer << 32 | i)));
        if (i % 64 == 0) {
          std::this_thread::yield();
        }
      }
    });
  }
  std::vector<std::uintptr_t> next(kProducers, 0);
  std::uintptr_t received = 0;
  while (received < kProducers * kPosts) {
    if (inbox.arm()) {
      const bool woken = wait_readable(inbox.fd(), 20'000);
      inbox.disarm();
      inbox.acknowledge();
      ASSERT_TRUE(woken) << "a post was lost: the consumer sleeps and " << received << " came";
    }
    inbox.drain_into(queue);
    while (!queue.empty()) {
      const std::uintptr_t number = number_of(queue.pop());
      ASSERT_EQ(number & 0xffffffffU, next[number >> 32]++);
      ++received;
    }
  }
  for (std::thread& producer : producers) {
    producer.join();
  }
  EXPECT_FALSE(inbox.has_posts());
}

TEST(WakeupInbox, WakeFromAnotherThreadAlwaysEndsAWait) {
  WakeupInbox inbox;
  std::atomic<int> wakes{0};
  std::atomic<int> seen{0};
  std::thread waker([&] {
    for (int i = 0; i < 500; ++i) {
      inbox.wake();
      wakes.store(i + 1);
      while (seen.load() != i + 1) {
        std::this_thread::yield();
      }
    }
  });
  for (int i = 0; i < 500; ++i) {
    if (inbox.arm()) {
      EXPECT_TRUE(wait_readable(inbox.fd(), 20'000));
      inbox.disarm();
      inbox.acknowledge();
    }
    while (wakes.load() != i + 1) {
      std::this_thread::yield();
    }
    seen.store(i + 1);
  }
  waker.join();
}

TEST(WakeupInbox, ClosingUnderFireAccountsForEveryPost) {
  for (int round = 0; round < 50; ++round) {
    WakeupInbox inbox;
    std::atomic<std::size_t> accepted{0};
    std::atomic<std::size_t> drained{0};
    std::atomic<bool> started{false};
    std::atomic<bool> closing{false};
    std::vector<std::thread> producers;
    for (int producer = 0; producer < 4; ++producer) {
      producers.emplace_back([&] {
        // On a busy machine the consumer may not run for long, and must find an end all the same.
        constexpr std::size_t kAhead = 100'000;
        while (inbox.post(entry_of(1))) {
          accepted.fetch_add(1);
          started.store(true);
          inbox.wake();
          while (accepted.load() > drained.load() + kAhead && !closing.load()) {
            std::this_thread::yield();
          }
        }
      });
    }
    ReadyQueue queue;
    const auto drain = [&] {
      inbox.drain_into(queue);
      while (!queue.empty()) {
        (void)queue.pop();
        ++drained;
      }
    };
    while (!started.load()) {
      std::this_thread::yield();
    }
    for (int i = 0; i < 20; ++i) {
      if (inbox.arm()) {
        inbox.disarm();
      }
      drain();
    }
    inbox.close();
    closing.store(true);
    for (std::thread& producer : producers) {
      producer.join();
    }
    drain();
    EXPECT_EQ(drained.load(), accepted.load());
  }
}

// In a child made by fork() the producers are gone, and one may have held the lock when it was
// copied.
TEST(WakeupInbox, AbandonedInAForkedChildItClosesWhateverTheProducersDid) {
  for (int round = 0; round < 20; ++round) {
    WakeupInbox inbox;
    ASSERT_TRUE(inbox.arm());
    std::atomic<bool> over{false};
    std::atomic<std::size_t> posted{0};
    std::vector<std::thread> producers;
    for (int producer = 0; producer < 2; ++producer) {
      producers.emplace_back([&] {
        while (!over.load()) {
          posted.fetch_add(inbox.post(entry_of(1)) ? 1 : 0);
        }
      });
    }
    while (posted.load() < 10) {
      std::this_thread::yield();
    }
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);  // A deadlock ends the child and fails the test.
      inbox.abandon_after_fork();
      const bool refused = !inbox.post(entry_of(2));
      inbox.wake();
      inbox.close();
      ::_exit(refused ? 0 : 1);
    }
    over.store(true);
    for (std::thread& producer : producers) {
      producer.join();
    }
    ASSERT_GT(child, 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

TEST(WakeupInbox, AbandonedInAForkedChildItNeverWakesTheParent) {
  WakeupInbox inbox;
  ASSERT_TRUE(inbox.arm());
  const pid_t child = ::fork();
  if (child == 0) {
    inbox.abandon_after_fork();
    inbox.wake();
    (void)inbox.post(entry_of(1));
    inbox.close();
    ::_exit(0);
  }
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(signals(inbox), 0U);
  EXPECT_TRUE(inbox.post(entry_of(1)));
  EXPECT_EQ(signals(inbox), 1U);
}

}  // namespace
}  // namespace cpploop

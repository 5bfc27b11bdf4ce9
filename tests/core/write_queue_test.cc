#include "core/net/write_queue.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace cpploop {
namespace {

[[nodiscard]] WriteQueue::Owner owner_of(std::uintptr_t number) {
  return reinterpret_cast<WriteQueue::Owner>(number);
}

using Owners = std::vector<std::uintptr_t>;

[[nodiscard]] auto collect(Owners& owners) {
  return [&owners](WriteQueue::Owner owner) {
    owners.push_back(reinterpret_cast<std::uintptr_t>(owner));
  };
}

[[nodiscard]] std::string text_of(std::span<const iovec> parts) {
  std::string text;
  for (const iovec& part : parts) {
    text.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  return text;
}

TEST(WriteQueue, GathersSegmentsInOrder) {
  WriteQueue queue;
  EXPECT_TRUE(queue.empty());
  queue.push("head", 4, owner_of(1));
  queue.push("body", 4, owner_of(2));
  std::array<iovec, 4> parts{};
  EXPECT_EQ(text_of(queue.gather(parts)), "headbody");
  EXPECT_EQ(queue.size_bytes(), 8U);
}

TEST(WriteQueue, GathersNoMoreThanThereIsRoomFor) {
  WriteQueue queue;
  for (int i = 0; i < 5; ++i) {
    queue.push("x", 1, owner_of(1));
  }
  std::array<iovec, 3> parts{};
  EXPECT_EQ(queue.gather(parts).size(), 3U);
  EXPECT_TRUE(queue.gather({}).empty());
}

TEST(WriteQueue, AdvanceReleasesAnOwnerWhenItsLastByteIsOut) {
  WriteQueue queue;
  Owners done;
  queue.push("head", 4, owner_of(1));
  queue.push("body", 4, owner_of(2));
  queue.advance(3, collect(done));
  EXPECT_TRUE(done.empty());
  queue.advance(0, collect(done));
  EXPECT_TRUE(done.empty());
  queue.advance(2, collect(done));
  EXPECT_EQ(done, (Owners{1}));
  std::array<iovec, 4> parts{};
  EXPECT_EQ(text_of(queue.gather(parts)), "ody");
  EXPECT_EQ(queue.size_bytes(), 3U);
  queue.advance(3, collect(done));
  EXPECT_EQ(done, (Owners{1, 2}));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.size_bytes(), 0U);
}

TEST(WriteQueue, ClearReleasesEveryOwnerInOrder) {
  WriteQueue queue;
  Owners done;
  queue.push("ab", 2, owner_of(1));
  queue.push("cd", 2, owner_of(2));
  queue.advance(1, collect(done));
  queue.clear(collect(done));
  EXPECT_EQ(done, (Owners{1, 2}));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.size_bytes(), 0U);
}

TEST(WriteQueue, IsWholeWheneverItReleasesAnOwner) {
  WriteQueue queue;
  queue.push("ab", 2, owner_of(1));
  queue.push("cd", 2, owner_of(2));
  int released = 0;
  queue.advance(4, [&](WriteQueue::Owner) {
    std::array<iovec, 4> parts{};
    EXPECT_EQ(queue.gather(parts).size(), released == 0 ? 1U : 0U);
    ++released;
  });
  EXPECT_EQ(released, 2);
}

TEST(WriteQueue, BehavesAsAStringDoesUnderRandomUse) {
  std::mt19937 random(99);
  const std::string source = "the quick brown fox jumps over the lazy dog";
  WriteQueue queue;
  std::string model;
  Owners done;
  std::uintptr_t pushed = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0) {
      const std::size_t at = random() % source.size();
      const std::size_t size = 1 + random() % (source.size() - at);
      queue.push(source.data() + at, size, owner_of(++pushed));
      model.append(source, at, size);
    } else {
      const std::size_t sent = model.empty() ? 0 : random() % (model.size() + 1);
      queue.advance(sent, collect(done));
      model.erase(0, sent);
    }
    ASSERT_EQ(queue.size_bytes(), model.size());
    ASSERT_EQ(queue.empty(), model.empty());
    std::array<iovec, 8> parts{};
    const std::string front = text_of(queue.gather(parts));
    ASSERT_EQ(front, model.substr(0, front.size()));
  }
  queue.clear(collect(done));
  ASSERT_EQ(done.size(), pushed);
  for (std::uintptr_t i = 0; i < pushed; ++i) {
    ASSERT_EQ(done[i], i + 1) << "owners are released in order, each once";
  }
}

}  // namespace
}  // namespace cpploop

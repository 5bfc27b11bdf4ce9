#include "core/net/readiness_watchers.h"

#include <gtest/gtest.h>

#include <climits>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Callback;
using testing::ScriptedEngine;
using testing::some_fd;

class ReadinessWatchersTest : public ::testing::Test {
 protected:
  [[nodiscard]] ReadinessWatchers& watchers() { return loop_.engine.watchers(); }
  // As add_reader() does it: on success the replaced callback is dropped, on failure the new one.
  int add(int fd, Wanted what, Callback* callback) {
    const ReadinessWatchers::Added added = watchers().add(fd, what, callback);
    if (added.error != 0) {
      loop_.host.drop(callback);
    } else if (added.replaced != nullptr) {
      loop_.host.drop(added.replaced);
    }
    return added.error;
  }
  bool remove(int fd, Wanted what) {
    const Token token = watchers().remove(fd, what);
    if (token != nullptr) {
      loop_.host.drop(token);
    }
    return token != nullptr;
  }
  [[nodiscard]] Callback* make(std::function<void()> function = {}) {
    return loop_.host.make(std::move(function));
  }

  ScriptedEngine loop_;
  UniqueFd fd_ = some_fd();
};

TEST_F(ReadinessWatchersTest, ReaderAndWriterOfOneDescriptorAreToldApart) {
  Callback* reader = make();
  Callback* writer = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  ASSERT_EQ(add(fd_.get(), kWantWritable, writer), 0);
  EXPECT_EQ(watchers().count(), 2U);
  loop_.backend->set_writable(fd_.get(), false);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
  EXPECT_EQ(writer->notices, 0);
  loop_.backend->set_readable(fd_.get(), false);
  loop_.backend->set_writable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
  EXPECT_EQ(writer->notices, 1);
}

TEST_F(ReadinessWatchersTest, IsToldAsLongAsItIsReady) {
  Callback* reader = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(reader->notices, 2);
}

TEST_F(ReadinessWatchersTest, AddingAgainReplacesAndGivesTheOldOneBack) {
  Callback* first = make();
  Callback* second = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, first), 0);
  ASSERT_EQ(add(fd_.get(), kWantReadable, second), 0);
  EXPECT_EQ(first->drops, 1);
  EXPECT_EQ(watchers().count(), 1U);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(first->notices, 0);
  EXPECT_EQ(second->notices, 1);
}

TEST_F(ReadinessWatchersTest, RemovingWhatIsNotThereSaysSo) {
  EXPECT_FALSE(remove(fd_.get(), kWantReadable));
  EXPECT_FALSE(remove(-1, kWantReadable));
  EXPECT_FALSE(remove(INT_MAX, kWantWritable));
  ASSERT_EQ(add(fd_.get(), kWantReadable, make()), 0);
  EXPECT_FALSE(remove(fd_.get(), kWantWritable));
  EXPECT_TRUE(watchers().has(fd_.get(), kWantReadable));
  EXPECT_TRUE(remove(fd_.get(), kWantReadable));
  EXPECT_FALSE(remove(fd_.get(), kWantReadable));
  EXPECT_EQ(watchers().count(), 0U);
  EXPECT_FALSE(loop_.engine.backend().has_channels());
}

TEST_F(ReadinessWatchersTest, MayRemoveItselfInItsCallback) {
  Callback* reader = make([&] { EXPECT_TRUE(remove(fd_.get(), kWantReadable)); });
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
  EXPECT_EQ(reader->drops, 1);
}

TEST_F(ReadinessWatchersTest, ReaderThatRemovesTheWriterKeepsItFromRunning) {
  Callback* writer = make();
  Callback* reader = make([&] { remove(fd_.get(), kWantWritable); });
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  ASSERT_EQ(add(fd_.get(), kWantWritable, writer), 0);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
  EXPECT_EQ(writer->notices, 0);
}

TEST_F(ReadinessWatchersTest, MayReplaceItselfInItsCallback) {
  Callback* second = make();
  Callback* first = make([&] { ASSERT_EQ(add(fd_.get(), kWantReadable, second), 0); });
  ASSERT_EQ(add(fd_.get(), kWantReadable, first), 0);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(second->notices, 0);
  loop_.turn();
  EXPECT_EQ(first->notices, 1);
  EXPECT_EQ(second->notices, 1);
}

TEST_F(ReadinessWatchersTest, RemovedByAnotherCallbackOfTheSamePollIsNotTold) {
  UniqueFd other = some_fd();
  Callback* first = nullptr;
  Callback* second = nullptr;
  // Whichever comes first removes the other.
  first = make([&] { remove(other.get(), kWantReadable); });
  second = make([&] { remove(fd_.get(), kWantReadable); });
  ASSERT_EQ(add(fd_.get(), kWantReadable, first), 0);
  ASSERT_EQ(add(other.get(), kWantReadable, second), 0);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.backend->set_readable(other.get(), true);
  loop_.turn();
  EXPECT_EQ(first->notices + second->notices, 1);
}

TEST_F(ReadinessWatchersTest, AddedByACallbackOfTheSamePollWaitsForTheNext) {
  Callback* writer = make();
  Callback* reader = make([&] { ASSERT_EQ(add(fd_.get(), kWantWritable, writer), 0); });
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  loop_.turn();
  const ChannelId id = loop_.backend->id_of(fd_.get());
  loop_.backend->next_poll({.events = {{id, kIoReadable | kIoWritable}}});
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
  EXPECT_EQ(writer->notices, 0) << "the poll did not ask for writing";
  remove(fd_.get(), kWantReadable);
  loop_.turn();
  EXPECT_EQ(writer->notices, 1);
}

TEST_F(ReadinessWatchersTest, RefusedDescriptorLeavesNothingBehind) {
  loop_.backend->refuse(fd_.get(), EPERM);  // As epoll refuses a regular file.
  Callback* reader = make();
  EXPECT_EQ(add(fd_.get(), kWantReadable, reader), EPERM);
  EXPECT_EQ(reader->drops, 1);
  EXPECT_FALSE(watchers().has(fd_.get(), kWantReadable));
  EXPECT_EQ(watchers().count(), 0U);
  EXPECT_EQ(loop_.engine.backend().attached_count(), 0U);
  loop_.backend->refuse(fd_.get(), 0);
  EXPECT_EQ(add(fd_.get(), kWantReadable, make()), 0);
}

TEST_F(ReadinessWatchersTest, RefusedWriterLeavesTheReaderAsItWas) {
  Callback* reader = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  loop_.turn();
  loop_.backend->refuse(fd_.get(), ENOSPC);
  EXPECT_EQ(add(fd_.get(), kWantWritable, make()), ENOSPC);
  EXPECT_EQ(watchers().at(fd_.get(), kWantReadable), reader);
  EXPECT_EQ(watchers().at(fd_.get(), kWantWritable), nullptr);
  EXPECT_EQ(watchers().at(-1, kWantReadable), nullptr);
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(reader->notices, 1);
}

TEST_F(ReadinessWatchersTest, RefusedReplacementLeavesTheOldOneInPlace) {
  Callback* reader = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, reader), 0);
  loop_.backend->refuse(fd_.get(), EBADF);
  EXPECT_EQ(add(fd_.get(), kWantReadable, make()), EBADF);
  EXPECT_EQ(reader->drops, 0);
  EXPECT_TRUE(watchers().has(fd_.get(), kWantReadable));
}

TEST_F(ReadinessWatchersTest, NumbersThatAreNoDescriptorsAreRefusedAndCostNothing) {
  for (const int fd : {-1, INT_MIN, INT_MAX, INT_MAX - 1, 1'000'000'000}) {
    EXPECT_EQ(add(fd, kWantReadable, make()), EBADF) << fd;
    EXPECT_FALSE(watchers().has(fd, kWantReadable));
  }
}

TEST_F(ReadinessWatchersTest, ClosedAndReusedNumberIsWatchedAnewWhenAddedAgain) {
  Callback* old_reader = make();
  Callback* new_reader = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, old_reader), 0);
  loop_.turn();
  loop_.backend->reuse_number(fd_.get());
  loop_.backend->set_readable(fd_.get(), true);
  loop_.turn();
  EXPECT_EQ(old_reader->notices, 0) << "the kernel forgot the old file's registration";
  ASSERT_EQ(add(fd_.get(), kWantReadable, new_reader), 0);
  loop_.turn();
  EXPECT_EQ(old_reader->notices, 0);
  EXPECT_EQ(new_reader->notices, 1);
}

TEST_F(ReadinessWatchersTest, EventOfARemovedWatcherNeverReachesTheNextOneOnTheNumber) {
  Callback* old_reader = make();
  Callback* new_reader = make();
  ASSERT_EQ(add(fd_.get(), kWantReadable, old_reader), 0);
  const ChannelId stale = loop_.backend->id_of(fd_.get());
  remove(fd_.get(), kWantReadable);
  ASSERT_EQ(add(fd_.get(), kWantReadable, new_reader), 0);
  loop_.backend->next_poll({.events = {{stale, kIoReadable}}});
  loop_.turn();
  EXPECT_EQ(old_reader->notices, 0);
  EXPECT_EQ(new_reader->notices, 0);
}

TEST_F(ReadinessWatchersTest, VisitsEveryCallback) {
  UniqueFd other = some_fd();
  ASSERT_EQ(add(fd_.get(), kWantReadable, make()), 0);
  ASSERT_EQ(add(fd_.get(), kWantWritable, make()), 0);
  ASSERT_EQ(add(other.get(), kWantWritable, make()), 0);
  int visited = 0;
  watchers().for_each([&](Token token) {
    EXPECT_NE(token, nullptr);
    ++visited;
  });
  EXPECT_EQ(visited, 3);
}

TEST_F(ReadinessWatchersTest, NamesEachWatchedDescriptorOnce) {
  UniqueFd other = some_fd();
  ASSERT_EQ(add(fd_.get(), kWantReadable, make()), 0);
  ASSERT_EQ(add(fd_.get(), kWantWritable, make()), 0);
  ASSERT_EQ(add(other.get(), kWantWritable, make()), 0);
  remove(other.get(), kWantWritable);
  std::vector<int> named;
  watchers().for_each_descriptor([&](int fd) { named.push_back(fd); });
  EXPECT_EQ(named, std::vector<int>{fd_.get()});
}

TEST_F(ReadinessWatchersTest, TakeAllGivesEverythingBackAndWatchesNothing) {
  ASSERT_EQ(add(fd_.get(), kWantReadable, make()), 0);
  ASSERT_EQ(add(fd_.get(), kWantWritable, make()), 0);
  std::vector<Token> taken;
  watchers().take_all(taken);
  EXPECT_EQ(taken.size(), 2U);
  EXPECT_EQ(watchers().count(), 0U);
  EXPECT_EQ(loop_.engine.backend().attached_count(), 0U);
  for (const Token token : taken) {
    loop_.host.drop(token);
  }
}

}  // namespace
}  // namespace cpploop

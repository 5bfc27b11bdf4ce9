#include "core/net/pipe_writer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "core/backend/scripted_backend.h"
#include "tests/core/support.h"

namespace cpploop {
namespace {

constexpr int kFd = 7;

class PipeWriterTest : public ::testing::Test {
 protected:
  ~PipeWriterTest() override {
    writer_.clear([this](WriteQueue::Owner owner) { drop(owner); });
    EXPECT_EQ(owners_, 0);
  }

  void queue(const std::string& bytes) {
    auto* owner = new std::string(bytes);
    ++owners_;
    writer_.queue(owner->data(), owner->size(), owner);
  }
  [[nodiscard]] IoResult write(const std::string& bytes) {
    return writer_.write(kFd, bytes.data(), bytes.size());
  }
  [[nodiscard]] IoResult write_queued() {
    return writer_.write_queued(kFd, [this](WriteQueue::Owner owner) { drop(owner); });
  }
  void drop(WriteQueue::Owner owner) {
    --owners_;
    delete static_cast<std::string*>(owner);
  }

  ScriptedBackend backend_;
  PipeWriter writer_{backend_};
  int owners_ = 0;
};

TEST_F(PipeWriterTest, WritesAtOnce) {
  EXPECT_EQ(write("hello").value, 5);
  EXPECT_EQ(write(" world").value, 6);
  EXPECT_EQ(backend_.sent(kFd), "hello world");
  EXPECT_EQ(backend_.offers(kFd).size(), 2U);  // Nothing is gathered.
}

TEST_F(PipeWriterTest, AFullPipeTakesNothing) {
  backend_.fill(kFd);
  const IoResult result = write("hello");
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.value, 0);
  EXPECT_TRUE(writer_.empty());
}

TEST_F(PipeWriterTest, ErrorsAreTheCallers) {
  backend_.fail_send(kFd, EPIPE);
  EXPECT_EQ(write("hello").error, EPIPE);
  queue("abc");
  backend_.fail_send(kFd, EIO);
  EXPECT_EQ(write_queued().error, EIO);
  EXPECT_EQ(writer_.size_bytes(), 3U);
}

TEST_F(PipeWriterTest, OneWriteForAllThatIsQueued) {
  queue("abc");
  queue("de");
  queue("f");
  EXPECT_EQ(writer_.size_bytes(), 6U);
  EXPECT_EQ(write_queued().value, 6);
  EXPECT_EQ(backend_.sent(kFd), "abcdef");
  EXPECT_EQ(backend_.offers(kFd), std::vector<std::size_t>{6});
  EXPECT_TRUE(writer_.empty());
  EXPECT_EQ(owners_, 0);
}

TEST_F(PipeWriterTest, ShortWritesGoOnWhereTheyStopped) {
  queue("abc");
  queue("defg");
  backend_.limit_send(kFd, 4);
  EXPECT_EQ(write_queued().value, 4);
  EXPECT_EQ(owners_, 1);
  EXPECT_EQ(writer_.size_bytes(), 3U);
  EXPECT_EQ(write_queued().value, 0);  // No room yet.
  backend_.make_room(kFd);
  EXPECT_EQ(write_queued().value, 3);
  EXPECT_EQ(backend_.sent(kFd), "abcdefg");
}

TEST_F(PipeWriterTest, MorePartsThanOneWriteHolds) {
  for (int i = 0; i < 1000; ++i) {
    queue("ab");
  }
  int writes = 0;
  while (!writer_.empty()) {
    ASSERT_TRUE(write_queued().ok());
    ++writes;
  }
  EXPECT_EQ(backend_.sent(kFd).size(), 2000U);
  EXPECT_GT(writes, 1);
  EXPECT_LT(writes, 10);
}

TEST_F(PipeWriterTest, ClearingGivesEveryOwnerBack) {
  queue("abc");
  queue("def");
  writer_.clear([this](WriteQueue::Owner owner) { drop(owner); });
  EXPECT_TRUE(writer_.empty());
  EXPECT_EQ(writer_.size_bytes(), 0U);
  EXPECT_EQ(owners_, 0);
}

}  // namespace
}  // namespace cpploop

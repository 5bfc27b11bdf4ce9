#include "core/os/pipe_ops.h"

#include <gtest/gtest.h>
#include <sys/uio.h>

#include <array>
#include <climits>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::socket_pair;
using testing::some_fd;

struct PipeEnds {
  UniqueFd reading;
  UniqueFd writing;
};

[[nodiscard]] PipeEnds pipe_ends() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

[[nodiscard]] os::FileKind kind_of(int fd) {
  os::FileKind kind = os::FileKind::other;
  EXPECT_TRUE(os::file_kind(fd, kind).ok());
  return kind;
}

TEST(PipeOps, TellsTheKindsApart) {
  const PipeEnds pipe = pipe_ends();
  EXPECT_EQ(kind_of(pipe.reading.get()), os::FileKind::pipe);
  EXPECT_EQ(kind_of(pipe.writing.get()), os::FileKind::pipe);
  EXPECT_EQ(kind_of(socket_pair().near_end.get()), os::FileKind::socket);
  EXPECT_EQ(kind_of(some_fd().get()), os::FileKind::character_device);
  EXPECT_EQ(kind_of(UniqueFd(::open("/", O_RDONLY | O_CLOEXEC)).get()), os::FileKind::other);
  std::string name = "/tmp/cpploop-pipe-ops-XXXXXX";
  const UniqueFd file(::mkstemp(name.data()));
  ::unlink(name.c_str());
  EXPECT_EQ(kind_of(file.get()), os::FileKind::other);
}

TEST(PipeOps, RefusesANumberThatNobodyHas) {
  os::FileKind kind = os::FileKind::pipe;
  EXPECT_EQ(os::file_kind(-1, kind).error, EBADF);
  EXPECT_EQ(kind, os::FileKind::pipe);
  EXPECT_EQ(os::set_nonblocking(-1).error, EBADF);
  std::array<char, 1> byte{};
  const iovec part{byte.data(), byte.size()};
  EXPECT_EQ(os::read_vector(-1, {&part, 1}).error, EBADF);
  EXPECT_EQ(os::write_vector(-1, {&part, 1}).error, EBADF);
}

TEST(PipeOps, NonBlockingReadsAndWritesSaySo) {
  const PipeEnds pipe = pipe_ends();
  ASSERT_TRUE(os::set_nonblocking(pipe.reading.get()).ok());
  ASSERT_TRUE(os::set_nonblocking(pipe.writing.get()).ok());
  std::vector<char> block(1 << 20, 'x');
  const iovec part{block.data(), block.size()};
  EXPECT_TRUE(os::read_vector(pipe.reading.get(), {&part, 1}).would_block());
  const IoResult taken = os::write_vector(pipe.writing.get(), {&part, 1});
  EXPECT_TRUE(taken.ok());
  EXPECT_LT(taken.value, 1 << 20);
  EXPECT_TRUE(os::write_vector(pipe.writing.get(), {&part, 1}).would_block());
  EXPECT_EQ(os::read_vector(pipe.reading.get(), {&part, 1}).value, taken.value);
}

TEST(PipeOps, ScattersAndGathers) {
  const PipeEnds pipe = pipe_ends();
  std::string one = "abc";
  std::string two = "defgh";
  const std::array<iovec, 2> out{iovec{one.data(), one.size()}, iovec{two.data(), two.size()}};
  EXPECT_EQ(os::write_vector(pipe.writing.get(), out).value, 8);
  std::array<char, 2> head{};
  std::array<char, 10> rest{};
  const std::array<iovec, 2> in{iovec{head.data(), head.size()}, iovec{rest.data(), rest.size()}};
  EXPECT_EQ(os::read_vector(pipe.reading.get(), in).value, 8);
  EXPECT_EQ(std::string(head.data(), 2) + std::string(rest.data(), 6), "abcdefgh");
}

TEST(PipeOps, TakesMorePartsThanTheKernelDoes) {
  const PipeEnds pipe = pipe_ends();
  std::string letter = "x";
  const std::vector<iovec> parts(IOV_MAX + 100, iovec{letter.data(), 1});
  EXPECT_EQ(os::write_vector(pipe.writing.get(), parts).value, IOV_MAX);
}

TEST(PipeOps, TheEndOfAPipe) {
  PipeEnds pipe = pipe_ends();
  std::array<char, 4> buffer{};
  const iovec part{buffer.data(), buffer.size()};
  pipe.writing.reset();
  const IoResult end = os::read_vector(pipe.reading.get(), {&part, 1});
  EXPECT_TRUE(end.ok());
  EXPECT_EQ(end.value, 0);
}

}  // namespace
}  // namespace cpploop

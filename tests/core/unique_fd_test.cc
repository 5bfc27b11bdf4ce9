#include "core/os/unique_fd.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <type_traits>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::is_open;
using testing::some_fd;

static_assert(!std::is_copy_constructible_v<UniqueFd>);
static_assert(!std::is_copy_assignable_v<UniqueFd>);
static_assert(std::is_nothrow_move_constructible_v<UniqueFd>);
static_assert(std::is_nothrow_move_assignable_v<UniqueFd>);

TEST(UniqueFd, HoldsNothingByDefault) {
  const UniqueFd fd;
  EXPECT_FALSE(fd);
  EXPECT_EQ(fd.get(), -1);
}

TEST(UniqueFd, ClosesWhenItDies) {
  int number = -1;
  {
    const UniqueFd fd = some_fd();
    number = fd.get();
    ASSERT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(UniqueFd, MovingLeavesTheSourceEmptyAndTheDescriptorOpen) {
  UniqueFd source = some_fd();
  const int number = source.get();
  const UniqueFd target(std::move(source));
  EXPECT_EQ(source.get(), -1);  // NOLINT(bugprone-use-after-move): what is promised.
  EXPECT_EQ(target.get(), number);
  EXPECT_TRUE(is_open(number));
}

TEST(UniqueFd, MoveAssignmentClosesWhatWasHeld) {
  UniqueFd target = some_fd();
  const int old = target.get();
  UniqueFd source = some_fd();
  const int number = source.get();
  target = std::move(source);
  EXPECT_FALSE(is_open(old));
  EXPECT_EQ(target.get(), number);
  EXPECT_TRUE(is_open(number));
}

TEST(UniqueFd, SelfMoveKeepsTheDescriptor) {
  UniqueFd fd = some_fd();
  UniqueFd& same = fd;
  fd = std::move(same);
  EXPECT_TRUE(is_open(fd.get()));
}

TEST(UniqueFd, ReleaseGivesTheDutyToCloseAway) {
  UniqueFd fd = some_fd();
  const int number = fd.release();
  EXPECT_FALSE(fd);
  fd.reset();
  EXPECT_TRUE(is_open(number));
  const UniqueFd again(number);
}

TEST(UniqueFd, ResetTwiceClosesOnce) {
  UniqueFd fd = some_fd();
  fd.reset();
  const UniqueFd other = some_fd();  // Takes the number that has just become free.
  fd.reset();
  EXPECT_TRUE(is_open(other.get()));
}

// Where descriptors are accounted for, taking what is not open ends the process.
#ifndef CPPLOOP_FAULTS
TEST(UniqueFd, ClosingLeavesErrnoAlone) {
  UniqueFd nothing_there(1'000'000'000);
  errno = ENOENT;
  nothing_there.reset();
  EXPECT_EQ(errno, ENOENT);
}
#endif

TEST(UniqueFd, DescriptorZeroIsADescriptor) {
  UniqueFd fd(0);
  EXPECT_TRUE(fd);
  EXPECT_EQ(fd.release(), 0);
}

}  // namespace
}  // namespace cpploop

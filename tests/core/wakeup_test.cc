#include "core/os/wakeup.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "tests/core/support.h"

namespace cpploop {
namespace {

[[nodiscard]] bool is_readable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, 0) == 1;
}

TEST(Wakeup, IsReadableFromASignalToTheDrain) {
  os::Wakeup wakeup;
  EXPECT_FALSE(is_readable(wakeup.fd()));
  wakeup.signal();
  wakeup.signal();
  EXPECT_TRUE(is_readable(wakeup.fd()));
  wakeup.drain();
  EXPECT_FALSE(is_readable(wakeup.fd()));
}

TEST(Wakeup, NeverBlocksHoweverOftenItIsSignalledOrDrained) {
  os::Wakeup wakeup;
  wakeup.drain();
  for (int i = 0; i < 200'000; ++i) {  // More than a pipe holds.
    wakeup.signal();
  }
  wakeup.drain();
  EXPECT_FALSE(is_readable(wakeup.fd()));
}

TEST(Wakeup, IsInheritedByNobodyAndClosedOnce) {
  os::Wakeup wakeup;
  const int fd = wakeup.fd();
  EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  wakeup.close();
  EXPECT_FALSE(testing::is_open(fd));
  wakeup.close();
}

}  // namespace
}  // namespace cpploop

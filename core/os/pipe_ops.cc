#include "core/os/pipe_ops.h"

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "core/os/kernel.h"
#include "core/os/retry.h"

namespace cpploop::os {
namespace {

[[nodiscard]] int part_count(std::span<const iovec> parts) noexcept {
  return static_cast<int>(std::min<std::size_t>(parts.size(), IOV_MAX));
}

}  // namespace

IoResult file_kind(int fd, FileKind& kind) noexcept {
  struct stat status{};
  const IoResult result = retry_on_interrupt([&] { return ::fstat(fd, &status); });
  if (!result.ok()) {
    return result;
  }
  if (S_ISFIFO(status.st_mode)) {
    kind = FileKind::pipe;
  } else if (S_ISSOCK(status.st_mode)) {
    kind = FileKind::socket;
  } else {
    kind = S_ISCHR(status.st_mode) ? FileKind::character_device : FileKind::other;
  }
  return result;
}

bool is_regular_file(int fd) noexcept {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

IoResult set_nonblocking(int fd) noexcept {
  return retry_on_interrupt([fd] {
    int on = 1;
    return ::ioctl(fd, FIONBIO, &on);
  });
}

IoResult read_vector(int fd, std::span<const iovec> parts) noexcept {
  if (parts.size() == 1) {
    return retry_on_interrupt(
        [&] { return kernel::read(fd, parts[0].iov_base, parts[0].iov_len); });
  }
  return retry_on_interrupt([&] { return kernel::readv(fd, parts.data(), part_count(parts)); });
}

IoResult write_vector(int fd, std::span<const iovec> parts) noexcept {
  if (parts.size() == 1) {
    return retry_on_interrupt(
        [&] { return kernel::write(fd, parts[0].iov_base, parts[0].iov_len); });
  }
  return retry_on_interrupt([&] { return kernel::writev(fd, parts.data(), part_count(parts)); });
}

}  // namespace cpploop::os

#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <memory>
#include <span>

#include "core/os/io_result.h"
#include "core/os/socket_ops.h"

namespace cpploop {

// A datagram as it came. The memory is its batch's: valid until that receives again.
struct Datagram {
  const char* data = nullptr;
  std::size_t size = 0;
  const os::SocketAddress* from = nullptr;
};

namespace os {

// Room for several datagrams of any size, and the headers to receive them in one system call. Only
// the pages that datagrams touch are ever backed by memory, so room for the largest costs a loop of
// small ones nothing. Belongs to the loop's thread.
class DatagramBatch {
 public:
  // The bound of one delivery: few enough that other connections do not wait long.
  static constexpr unsigned kMessages = 16;
  // What IP can carry in one datagram fits, whatever its header.
  static constexpr std::size_t kSlotSize = 64 * 1024;
  // Other families send larger ones; what is larger than this is cut, as asyncio cuts it.
  static constexpr std::size_t kWholeSize = 256 * 1024;

  DatagramBatch();  // Throws std::bad_alloc.

  // Receives what is there, up to kMessages of up to kSlotSize each; `value` is the count. ENOSYS
  // or EPERM where there is no such call.
  [[nodiscard]] IoResult receive(int fd) noexcept;
  // Receives one of up to kWholeSize; `value` is the count: 1.
  [[nodiscard]] IoResult receive_one(int fd) noexcept;
  [[nodiscard]] std::span<const Datagram> received(std::size_t count) const noexcept {
    return std::span<const Datagram>(datagrams_).first(count);
  }

 private:
  void note(std::size_t index, std::size_t size, socklen_t name_length) noexcept;

  std::unique_ptr<char[]> memory_;
#if CPPLOOP_HAVE_RECVMMSG
  std::array<mmsghdr, kMessages> headers_{};
#endif
  std::array<iovec, kMessages> parts_{};
  std::array<SocketAddress, kMessages> names_{};
  std::array<Datagram, kMessages> datagrams_{};
};

// Which form of receiving is in use: kernels without recvmmsg, and fences that refuse it, get their
// datagrams one by one. Tests force that.
enum class ReceiveMode { batches, one_by_one };
[[nodiscard]] ReceiveMode receive_mode() noexcept;
void force_receive_mode(ReceiveMode mode) noexcept;

}  // namespace os
}  // namespace cpploop

#include "core/os/datagram_batch.h"

#include <atomic>
#include <cerrno>

namespace cpploop::os {
namespace {

// One process has one kernel, so the answer is kept for the process.
std::atomic<ReceiveMode> g_receive_mode{ReceiveMode::batches};

}  // namespace

DatagramBatch::DatagramBatch()
    : memory_(std::make_unique_for_overwrite<char[]>(kMessages * kSlotSize)) {
  static_assert(kMessages * kSlotSize >= kWholeSize);
  for (std::size_t i = 0; i < kMessages; ++i) {
    parts_[i] = iovec{memory_.get() + i * kSlotSize, kSlotSize};
#if CPPLOOP_HAVE_RECVMMSG
    headers_[i].msg_hdr.msg_name = names_[i].get();
    headers_[i].msg_hdr.msg_namelen = sizeof(names_[i].storage);
    headers_[i].msg_hdr.msg_iov = &parts_[i];
    headers_[i].msg_hdr.msg_iovlen = 1;
#endif
  }
}

void DatagramBatch::note(std::size_t index, std::size_t size, socklen_t name_length) noexcept {
  names_[index].length = name_length;
  datagrams_[index] = {static_cast<const char*>(parts_[index].iov_base), size, &names_[index]};
}

#if CPPLOOP_HAVE_RECVMMSG
IoResult DatagramBatch::receive(int fd) noexcept {
  const IoResult result = receive_messages(fd, headers_.data(), kMessages);
  for (std::int64_t i = 0; i < result.value; ++i) {
    const auto index = static_cast<std::size_t>(i);
    msghdr& header = headers_[index].msg_hdr;
    note(index, headers_[index].msg_len, header.msg_namelen);
    // The kernel has written over it.
    header.msg_namelen = sizeof(names_[index].storage);
  }
  return result;
}
#else
IoResult DatagramBatch::receive(int /*fd*/) noexcept { return IoResult::failure(ENOSYS); }
#endif

IoResult DatagramBatch::receive_one(int fd) noexcept {
  SocketAddress& name = names_[0];
  const IoResult result = receive_from(fd, memory_.get(), kWholeSize, name);
  if (!result.ok()) {
    return result;
  }
  note(0, static_cast<std::size_t>(result.value), name.length);
  return IoResult::success(1);
}

ReceiveMode receive_mode() noexcept { return g_receive_mode.load(std::memory_order_relaxed); }

void force_receive_mode(ReceiveMode mode) noexcept {
  g_receive_mode.store(mode, std::memory_order_relaxed);
}

}  // namespace cpploop::os

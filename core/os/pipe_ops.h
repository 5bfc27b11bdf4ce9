#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/os/io_result.h"

// The system calls of descriptors that need not be sockets: pipes, FIFOs, terminals and other
// character devices. As in socket_ops, each is wrapped once.
namespace cpploop::os {

enum class FileKind : std::uint8_t { pipe, socket, character_device, other };

// What a descriptor leads to; `kind` is written on success only.
[[nodiscard]] IoResult file_kind(int fd, FileKind& kind) noexcept;
// False as well when nothing can be said of it. A directory counts.
[[nodiscard]] bool is_regular_file(int fd) noexcept;
[[nodiscard]] IoResult set_nonblocking(int fd) noexcept;

// No more than IOV_MAX parts are used; the rest counts as not read or not written.
[[nodiscard]] IoResult read_vector(int fd, std::span<const iovec> parts) noexcept;
[[nodiscard]] IoResult write_vector(int fd, std::span<const iovec> parts) noexcept;

}  // namespace cpploop::os

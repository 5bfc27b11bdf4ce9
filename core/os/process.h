#pragma once

#include <cstdint>

namespace cpploop::os {

// Counts the forks between the first process and this one. What was made under another count
// belongs to the parent: its kernel objects are shared and must not be edited. One load, where
// asking for the process id would be a system call.
[[nodiscard]] std::uint32_t fork_generation() noexcept;

}  // namespace cpploop::os

#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/backend/backend.h"

namespace cpploop {

// Which way to the kernel is asked for. `automatic` is epoll, until the figures say otherwise, and
// kqueue where there is no epoll.
enum class BackendChoice { automatic, epoll, io_uring, kqueue };

// The names of those that this build has, the one that `automatic` stands for first.
[[nodiscard]] std::span<const BackendChoice> backends_built() noexcept;
[[nodiscard]] const char* name_of(BackendChoice choice) noexcept;
// How exactly it waits for a deadline, in a word.
[[nodiscard]] const char* timed_wait() noexcept;

// A backend that watches `wakeup_fd`. epoll in io_uring's place where the kernel, or what fences
// it, refuses io_uring; `automatic` in the place of what this build does not have. Throws
// std::system_error or std::bad_alloc.
[[nodiscard]] std::unique_ptr<Backend> make_backend(BackendChoice choice, int wakeup_fd);

// Empty when a ring can be had in this process, otherwise the reason why not.
[[nodiscard]] std::string io_uring_refusal();

}  // namespace cpploop

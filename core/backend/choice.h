#pragma once

#include <memory>
#include <string>

#include "core/backend/backend.h"

namespace cpploop {

// Which way to the kernel is asked for. `automatic` is epoll, until the figures say otherwise.
enum class BackendChoice { automatic, epoll, io_uring };

// A backend that watches `wakeup_fd`. epoll in io_uring's place where the kernel, or what fences
// it, refuses io_uring. Throws std::system_error or std::bad_alloc.
[[nodiscard]] std::unique_ptr<Backend> make_backend(BackendChoice choice, int wakeup_fd);

// Empty when a ring can be had in this process, otherwise the reason why not.
[[nodiscard]] std::string io_uring_refusal();

}  // namespace cpploop

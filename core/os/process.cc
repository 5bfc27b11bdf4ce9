#include "core/os/process.h"

#include <pthread.h>

#include <atomic>

namespace cpploop::os {
namespace {

std::atomic<std::uint32_t> g_fork_generation{1};

void count_fork() noexcept { g_fork_generation.fetch_add(1, std::memory_order_relaxed); }

[[maybe_unused]] const int g_fork_hook = pthread_atfork(nullptr, nullptr, count_fork);

}  // namespace

std::uint32_t fork_generation() noexcept {
  return g_fork_generation.load(std::memory_order_relaxed);
}

}  // namespace cpploop::os

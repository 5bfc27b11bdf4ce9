// Builds with CPPLOOP_FAULTS: C++ memory that runs out where a test says so. This replaces operator
// new for the extension alone, whose symbols nobody else sees.

#include "binding/fault_allocations.h"

#ifdef CPPLOOP_FAULTS

#include <cstdlib>
#include <new>

namespace cpploop {
namespace {

// Counted for the thread alone that asks: others go on.
struct Plan {
  unsigned long long made = 0;
  unsigned long long first = 0;
  unsigned long long behind_last = 0;
};

thread_local Plan t_plan;

[[nodiscard]] bool fails_now() noexcept {
  Plan& plan = t_plan;
  if (plan.behind_last == 0) {
    return false;
  }
  const unsigned long long number = plan.made++;
  return number >= plan.first && number < plan.behind_last;
}

[[nodiscard]] void* allocate_or_null(std::size_t size) noexcept {
  return fails_now() ? nullptr : std::malloc(size == 0 ? 1 : size);
}

[[nodiscard]] void* allocate(std::size_t size) {
  void* memory = allocate_or_null(size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

void fail_allocations(unsigned long long first, unsigned long long behind_last) noexcept {
  t_plan = {0, first, behind_last};
}

}  // namespace cpploop

void* operator new(std::size_t size) { return cpploop::allocate(size); }
void* operator new[](std::size_t size) { return cpploop::allocate(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return cpploop::allocate_or_null(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return cpploop::allocate_or_null(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

#endif

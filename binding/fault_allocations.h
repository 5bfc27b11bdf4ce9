#pragma once

namespace cpploop::faults {

// In builds with CPPLOOP_FAULTS. From here on this thread's C++ allocations are counted, and those
// numbered `first` to `behind_last` - 1 fail; 0, 0 ends that.
void fail_allocations(unsigned long long first, unsigned long long behind_last) noexcept;
// Since fail_allocations() was called last.
[[nodiscard]] unsigned long long allocations_made() noexcept;

}  // namespace cpploop::faults

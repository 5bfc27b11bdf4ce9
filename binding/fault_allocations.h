#pragma once

namespace cpploop {

// In builds with CPPLOOP_FAULTS: of this thread's C++ allocations, counted from now, those numbered
// `first` to `behind_last` - 1 fail; 0, 0 ends that.
void fail_allocations(unsigned long long first, unsigned long long behind_last) noexcept;

}  // namespace cpploop

#pragma once

#include <atomic>

namespace cpploop::os {

// A descriptor's number as somebody else keeps it who shares the descriptor, and who may close it
// in another thread at any time. From then on it may stand for another file.
class SharedNumber {
 public:
  // Null: nobody shares it.
  void look_at(int* number) noexcept { number_ = number; }
  [[nodiscard]] bool is(int fd) const noexcept {
    return number_ == nullptr || std::atomic_ref(*number_).load(std::memory_order_relaxed) == fd;
  }

 private:
  int* number_ = nullptr;
};

}  // namespace cpploop::os

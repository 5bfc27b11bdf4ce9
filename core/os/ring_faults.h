#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CPPLOOP_FAULTS
#include <utility>
#include <vector>
#endif

// The operations of a ring are no system calls, so their faults have a place of their own: an
// operation that is to fail is submitted as one that does nothing, and reports the error instead.
namespace cpploop::os {

enum class RingOperation : std::uint8_t { receive, send, poll_in, poll_out };

#ifdef CPPLOOP_FAULTS

class RingFaults {
 public:
  // True: submit nothing instead. What is sent may be made less.
  [[nodiscard]] bool spoils(RingOperation operation, int fd, std::uint64_t user_data,
                            std::size_t& size);
  // What the operation reports, `result` when nothing was done to it.
  [[nodiscard]] std::int32_t outcome(std::uint64_t user_data, std::int32_t result);
  // How much of a buffer of this size the kernel is to have.
  [[nodiscard]] static std::size_t room_of(std::size_t size) noexcept;
  // The call that submits: 0, or an errno and it is not made. `waits` may be taken back.
  [[nodiscard]] static int of_enter(bool& waits) noexcept;
  // `deferred`: with what kernels before 6.1 lack, which may be refused for itself.
  [[nodiscard]] static int of_setup(bool deferred) noexcept;

 private:
  std::vector<std::pair<std::uint64_t, std::int32_t>> outcomes_;
};

#else

class RingFaults {
 public:
  [[nodiscard]] static bool spoils(RingOperation, int, std::uint64_t, std::size_t&) noexcept {
    return false;
  }
  [[nodiscard]] static std::int32_t outcome(std::uint64_t, std::int32_t result) noexcept {
    return result;
  }
  [[nodiscard]] static std::size_t room_of(std::size_t size) noexcept { return size; }
  [[nodiscard]] static int of_enter(bool&) noexcept { return 0; }
  [[nodiscard]] static int of_setup(bool) noexcept { return 0; }
};

#endif

}  // namespace cpploop::os

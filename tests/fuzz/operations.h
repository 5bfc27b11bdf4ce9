#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// A fuzz input is a sequence of operations: each target reads a byte to choose one and more for its
// arguments. A broken promise ends the process, which is what a fuzzer looks for.
#define FUZZ_CHECK(condition)                                                        \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace cpploop::fuzz {

class Operations {
 public:
  Operations(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  [[nodiscard]] bool over() const { return next_ == end_; }
  // Zero once the input is over.
  [[nodiscard]] std::uint8_t byte() { return over() ? std::uint8_t{0} : *next_++; }
  [[nodiscard]] std::size_t below(std::size_t limit) { return byte() % limit; }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
};

// What libFuzzer calls, for a Target that is made with the operations and has run().
template <typename Target>
[[nodiscard]] int run_input(const std::uint8_t* data, std::size_t size) {
  Operations operations(data, size);
  Target target(operations);
  target.run();
  return 0;
}

}  // namespace cpploop::fuzz

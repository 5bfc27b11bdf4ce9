#include <deque>

#include "core/sched/ready_queue.h"
#include "tests/fuzz/operations.h"

// The ready queue against a deque.

using cpploop::ReadyEntry;
using cpploop::ReadyQueue;

namespace {

[[nodiscard]] std::uintptr_t number_of(const ReadyEntry& entry) {
  return reinterpret_cast<std::uintptr_t>(entry.token);
}

void check_same(const ReadyQueue& queue, const std::deque<std::uintptr_t>& model) {
  FUZZ_CHECK(queue.size() == model.size());
  auto expected = model.begin();
  queue.for_each([&](const ReadyEntry& entry) { FUZZ_CHECK(number_of(entry) == *expected++); });
  FUZZ_CHECK(expected == model.end());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  cpploop::fuzz::Operations operations(data, size);
  ReadyQueue queue;
  std::deque<std::uintptr_t> model;
  std::uintptr_t next = 0;
  while (!operations.over()) {
    switch (operations.below(5)) {
      case 0:
        for (std::size_t count = operations.byte(); count > 0; --count) {
          queue.push(ReadyEntry::of_token(reinterpret_cast<cpploop::Token>(++next)));
          model.push_back(next);
        }
        break;
      case 1:
        for (std::size_t count = operations.byte(); count > 0 && !model.empty(); --count) {
          FUZZ_CHECK(number_of(queue.pop()) == model.front());
          model.pop_front();
        }
        break;
      case 2:
        queue.reserve(operations.byte());
        break;
      case 3:
        FUZZ_CHECK(
            queue.push_front(ReadyEntry::of_token(reinterpret_cast<cpploop::Token>(++next))));
        model.push_front(next);
        break;
      default:
        check_same(queue, model);
        break;
    }
    FUZZ_CHECK(queue.empty() == model.empty());
  }
  check_same(queue, model);
  return 0;
}

#include <poll.h>

#include <deque>

#include "core/sched/ready_queue.h"
#include "core/sched/wakeup_inbox.h"
#include "tests/fuzz/operations.h"

// The inbox against a deque, on one thread: what is posted comes out once and in order, and its
// descriptor is readable exactly when an armed consumer was given a reason to wake up.

using cpploop::ReadyEntry;
using cpploop::ReadyQueue;
using cpploop::WakeupInbox;

namespace {

[[nodiscard]] bool readable(const WakeupInbox& inbox) {
  pollfd waiting{inbox.fd(), POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 1;
}

struct Model {
  std::deque<std::uintptr_t> posted;
  bool armed = false;
  bool woken = false;
  bool signalled = false;
  bool closed = false;

  void wake_consumer() {
    signalled = signalled || armed;
    armed = false;
  }
};

void drain(WakeupInbox& inbox, Model& model) {
  ReadyQueue queue;
  inbox.drain_into(queue);
  FUZZ_CHECK(!inbox.has_posts());
  FUZZ_CHECK(queue.size() == model.posted.size());
  while (!queue.empty()) {
    FUZZ_CHECK(reinterpret_cast<std::uintptr_t>(queue.pop().token) == model.posted.front());
    model.posted.pop_front();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  cpploop::fuzz::Operations operations(data, size);
  WakeupInbox inbox;
  Model model;
  std::uintptr_t next = 0;
  while (!operations.over()) {
    switch (operations.below(7)) {
      case 0:
        for (std::size_t count = operations.below(16); count > 0; --count) {
          const bool taken =
              inbox.post(ReadyEntry::of_token(reinterpret_cast<cpploop::Token>(++next)));
          FUZZ_CHECK(taken == !model.closed);
          if (taken) {
            model.posted.push_back(next);
            model.wake_consumer();
          }
        }
        break;
      case 1:
        inbox.wake();
        model.woken = true;
        model.wake_consumer();
        break;
      case 2: {
        const bool may_block = model.posted.empty() && !model.woken;
        FUZZ_CHECK(inbox.arm() == may_block);
        model.armed = model.armed || may_block;
        model.woken = false;
        break;
      }
      case 3:
        inbox.disarm();
        model.armed = model.woken = false;
        break;
      case 4:
        if (!model.closed) {
          inbox.acknowledge();
          model.signalled = false;
        }
        break;
      case 5:
        drain(inbox, model);
        break;
      default:
        if (operations.below(32) == 0) {
          inbox.close();
          model.closed = true;
          model.armed = false;
        }
        break;
    }
    FUZZ_CHECK(inbox.has_posts() == !model.posted.empty());
    if (!model.closed) {
      FUZZ_CHECK(readable(inbox) == model.signalled);
    }
  }
  drain(inbox, model);
  return 0;
}

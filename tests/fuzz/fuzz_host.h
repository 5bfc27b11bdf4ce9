#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "core/backend/scripted_backend.h"
#include "core/engine.h"
#include "tests/fuzz/operations.h"

namespace cpploop::fuzz {

// The engine's owner in a target: a token is a function that runs in a turn.
class FuzzHost final : public Host {
 public:
  using Function = std::function<void()>;

  void run(Token token) override {
    const std::unique_ptr<Function> function(static_cast<Function*>(token));
    (*function)();
  }
  void drop(Token token) noexcept override { delete static_cast<Function*>(token); }
  void notify(Token) override {}
  bool timer_left_heap(Token) noexcept override { return false; }
  bool is_cancelled(Token) const noexcept override { return false; }
  void about_to_block() noexcept override {}
  void woke_up() override {}
  void wait_interrupted() override {}
  void io_begins() noexcept override {}
  void io_ended() noexcept override {}
  void stayed_busy() noexcept override {}
};

// One turn of an engine whose host is a FuzzHost; `function` runs in it, so that it cannot block.
inline void turn(Engine& engine, FuzzHost::Function function) {
  engine.push_ready(ReadyEntry::of_token(new FuzzHost::Function(std::move(function))));
  FUZZ_CHECK(engine.turn() == 0);
}

// An engine on a scripted kernel, driven by the input between its turns, in them, and in the
// callbacks of what is tested.
class EngineTarget {
 public:
  EngineTarget(const EngineTarget&) = delete;
  EngineTarget& operator=(const EngineTarget&) = delete;
  virtual ~EngineTarget() {
    FUZZ_CHECK(engine_.backend().attached_count() == 0);
    engine_.close();
  }

  void run() {
    while (!operations_.over()) {
      if (operations_.below(3) == 0) {
        turn(engine_, [this] { some_operations(); });
      } else {
        operation();
      }
      check();
    }
    finish();
  }
  // What a callback does.
  void some_operations() {
    if (depth_ < kDepthLimit) {
      ++depth_;
      for (std::size_t count = operations_.below(4); count > 0; --count) {
        operation();
      }
      --depth_;
    }
  }

 protected:
  explicit EngineTarget(Operations& operations)
      : operations_(operations),
        engine_(host_, std::make_unique<WakeupInbox>(), std::unique_ptr<Backend>(backend_)) {
    backend_->set_recording(false);
    engine_.set_clock(&clock_);
  }

  virtual void operation() = 0;
  // Between the input's operations.
  virtual void check() {}
  // With the input over.
  virtual void finish() = 0;

  Operations& operations_;
  FuzzHost host_;
  FakeClock clock_;
  ScriptedBackend* backend_ = new ScriptedBackend(&clock_);
  Engine engine_;

 private:
  static constexpr int kDepthLimit = 4;

  int depth_ = 0;
};

}  // namespace cpploop::fuzz

#pragma once

#include <functional>
#include <memory>
#include <utility>

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

}  // namespace cpploop::fuzz

#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

namespace cpploop::testing {

// Interrupts system calls of the calling thread until it is destroyed. The handler is installed
// without SA_RESTART, so that every blocking call returns EINTR.
class SignalStorm {
 public:
  SignalStorm() {
    struct sigaction action{};
    action.sa_handler = [](int) { signals_.fetch_add(1); };
    ::sigaction(SIGUSR1, &action, &before_);
    const pthread_t target = ::pthread_self();
    sender_ = std::thread([this, target] {
      while (!over_.load()) {
        ::pthread_kill(target, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  ~SignalStorm() {
    over_.store(true);
    sender_.join();
    ::sigaction(SIGUSR1, &before_, nullptr);
  }
  SignalStorm(const SignalStorm&) = delete;
  SignalStorm& operator=(const SignalStorm&) = delete;

  [[nodiscard]] static int signals() { return signals_.load(); }

 private:
  static inline std::atomic<int> signals_{0};
  std::atomic<bool> over_{false};
  struct sigaction before_{};
  std::thread sender_;
};

}  // namespace cpploop::testing

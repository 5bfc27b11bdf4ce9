#pragma once

#include <sys/types.h>

#include <memory>
#include <unordered_map>
#include <vector>

#include "core/backend/backend.h"

namespace cpploop {

class Engine;

// The callbacks that wait for the end of child processes, by the child's number. Only for backends
// that watch processes: elsewhere a process has a descriptor, and that is watched. Belongs to the
// loop's thread.
class ProcessWatchers {
 public:
  explicit ProcessWatchers(Engine& engine) noexcept : engine_(engine) {}
  ~ProcessWatchers();
  ProcessWatchers(const ProcessWatchers&) = delete;
  ProcessWatchers& operator=(const ProcessWatchers&) = delete;

  // 0, and the token belongs to the watchers until it is removed; or an errno, and it stays the
  // caller's: ENOSYS where the backend watches no processes, EEXIST for one that is watched. The
  // host is notified once. Throws std::bad_alloc.
  [[nodiscard]] int add(pid_t process, Token token);
  // The token that was there, for the caller to drop, or null.
  [[nodiscard]] Token remove(pid_t process) noexcept;
  // Takes everything out, for the caller to drop.
  void take_all(std::vector<Token>& removed);

  template <typename Visitor>
  void for_each(Visitor visit) const {
    for (const auto& [process, watcher] : by_number_) {
      visit(watcher->token);
    }
  }

 private:
  struct Watcher final : ReadinessSink {
    explicit Watcher(Engine& owner) noexcept : engine(owner) {}
    void hold() noexcept override {}
    void release() noexcept override {}
    void on_readable() override;
    void on_writable() override {}

    Engine& engine;
    Channel channel;
    Token token = nullptr;
  };

  Engine& engine_;
  std::unordered_map<pid_t, std::unique_ptr<Watcher>> by_number_;
  // What was removed may be in the middle of its notification; the next ones are made of it.
  std::vector<std::unique_ptr<Watcher>> spare_;
};

}  // namespace cpploop

#pragma once

#include <sys/types.h>

#include <memory>
#include <vector>

#include "core/backend/backend.h"

namespace cpploop {

class Engine;

// The callbacks of add_reader() and add_writer(), by descriptor. The descriptors are the user's:
// they may be closed and their numbers given to other files without a word to us. And the callbacks
// that wait for the end of a child process, where the backend is told of that by the child's
// number. Belongs to the loop's thread.
class ReadinessWatchers {
 public:
  explicit ReadinessWatchers(Engine& engine) noexcept : engine_(engine) {}
  ~ReadinessWatchers();
  ReadinessWatchers(const ReadinessWatchers&) = delete;
  ReadinessWatchers& operator=(const ReadinessWatchers&) = delete;

  struct Added {
    int error = 0;
    Token replaced = nullptr;  // The caller drops it.
  };
  // On success the token belongs to the watchers until it is replaced or removed; on failure it
  // stays the caller's and nothing has changed. Throws std::bad_alloc.
  [[nodiscard]] Added add(int fd, Wanted what, Token token);
  // The token that was there, for the caller to drop, or null.
  [[nodiscard]] Token remove(int fd, Wanted what) noexcept;
  // The same two for a reader that reads before it waits, and waits often: see Backend. `same_file`
  // when the number stands for the file that it stood for at the last rest().
  [[nodiscard]] Added add_after_read(int fd, Token token, bool same_file);
  [[nodiscard]] Token rest(int fd) noexcept;
  // The end of a child, which is told once. Besides what add() reports ENOSYS, where the backend
  // watches no processes, and EEXIST for one that is watched already.
  [[nodiscard]] Added add_process(pid_t process, Token token);
  [[nodiscard]] Token remove_process(pid_t process) noexcept;
  // Has the kernel tell the reader again of what is there already.
  void look_again(int fd) noexcept;
  [[nodiscard]] bool has(int fd, Wanted what) const noexcept { return at(fd, what) != nullptr; }
  // The token that is there, which stays the watchers', or null.
  [[nodiscard]] Token at(int fd, Wanted what) const noexcept;
  [[nodiscard]] std::size_t count() const noexcept { return count_; }

  // Visits each descriptor that is watched.
  template <typename Visitor>
  void for_each_descriptor(Visitor visit) const {
    for (std::size_t fd = 0; fd < by_fd_.size(); ++fd) {
      const Watcher* watcher = by_fd_[fd].get();
      if (watcher != nullptr && (watcher->reader != nullptr || watcher->writer != nullptr)) {
        visit(static_cast<int>(fd));
      }
    }
  }

  // Takes everything out, for the caller to drop.
  void take_all(std::vector<Token>& removed);

  template <typename Visitor>
  void for_each(Visitor visit) const {
    for_each_watcher([&](const Watcher& watcher) {
      for (const Token token : {watcher.reader, watcher.writer}) {
        if (token != nullptr) {
          visit(token);
        }
      }
    });
  }

  struct Place {
    int fd;
    Wanted what;
  };
  // Where a token waits for a descriptor; an fd of -1 if it does not. Looks at all of them.
  [[nodiscard]] Place place_of(Token token) const noexcept;

 private:
  struct Watcher final : ReadinessSink {
    explicit Watcher(Engine& owner) noexcept : engine(owner) {}
    void hold() noexcept override {}
    void release() noexcept override {}
    void on_readable() override;
    void on_writable() override;
    [[nodiscard]] Token& slot(Wanted what) noexcept {
      return what == kWantReadable ? reader : writer;
    }

    Engine& engine;
    Channel channel;
    Token reader = nullptr;
    Token writer = nullptr;
  };

  template <typename Visitor>
  void for_each_watcher(Visitor visit) const {
    for (const auto* watchers : {&by_fd_, &processes_}) {
      for (const auto& watcher : *watchers) {
        if (watcher != nullptr) {
          visit(*watcher);
        }
      }
    }
  }
  // Null for a number that is not open.
  [[nodiscard]] Watcher* attached_watcher(int fd);
  [[nodiscard]] Added settle(Watcher& watcher, Wanted what, Token token, int error) noexcept;
  [[nodiscard]] Watcher* find(int fd) const noexcept {
    return fd >= 0 && static_cast<std::size_t>(fd) < by_fd_.size()
               ? by_fd_[static_cast<std::size_t>(fd)].get()
               : nullptr;
  }

  [[nodiscard]] Watcher* find_process(pid_t process) const noexcept;

  Engine& engine_;
  std::vector<std::unique_ptr<Watcher>> by_fd_;
  // In no order. One that is not attached is the next child's: its memory outlives what it is in
  // the middle of telling.
  std::vector<std::unique_ptr<Watcher>> processes_;
  std::size_t count_ = 0;  // Tokens held.
};

}  // namespace cpploop

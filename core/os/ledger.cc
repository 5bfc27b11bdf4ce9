#include "core/os/ledger.h"

#ifdef CPPLOOP_FAULTS

#include <execinfo.h>
#include <pthread.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace cpploop::ledger {
namespace {

enum class State : std::uint8_t { unknown, owned, given_away, closed };

struct Entry {
  std::uint32_t generation = 0;
  State state = State::unknown;
  Place taken{};
  Place ended{};
  // Which file the number stood for. Sockets and pipes have numbers of their own; what has not
  // (eventfd, epoll) is told apart by generations alone.
  dev_t device = 0;
  ino_t file = 0;
};

struct Account {
  std::mutex mutex;
  std::vector<Entry> entries;
  Figures figures;
};

// Never destroyed: descriptors are closed until the very end of the process.
[[nodiscard]] Account& account() {
  static auto* const the_one = [] {
    auto* made = new Account();
    pthread_atfork([] { account().mutex.lock(); }, [] { account().mutex.unlock(); },
                   [] { account().mutex.unlock(); });
    return made;
  }();
  return *the_one;
}

[[nodiscard]] std::string text_of(const Place& place) {
  return std::string(place.file_name()) + ":" + std::to_string(place.line());
}

[[noreturn]] void fail(const std::string& text) noexcept {
  std::fprintf(stderr, "cpploop ledger: %s\n", text.c_str());
  void* frames[32];
  backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
  std::abort();
}

[[nodiscard]] bool is_same_file(const Entry& entry, int fd) noexcept {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && status.st_dev == entry.device && status.st_ino == entry.file;
}

[[nodiscard]] std::string fate_of(const Entry& entry) {
  const std::string generation = " (generation " + std::to_string(entry.generation) + ")";
  switch (entry.state) {
    case State::owned:
      return "it is owned by the one who took it at " + text_of(entry.taken) + generation;
    case State::given_away:
      return "it was given away by the one who took it at " + text_of(entry.taken) + generation;
    case State::closed:
      return "it was closed at " + text_of(entry.ended) + " by the one who took it at " +
             text_of(entry.taken) + generation;
    case State::unknown:
      break;
  }
  return "nobody has taken it";
}

// What is wrong with the claim that `fd` is the ticket's; empty if nothing is.
[[nodiscard]] std::string objection(const Entry& entry, int fd, const Ticket& ticket) {
  if (entry.generation != ticket.generation || entry.state != State::owned) {
    return fate_of(entry);
  }
  return is_same_file(entry, fd) ? "" : "its number stands for another file, or for none";
}

[[nodiscard]] Entry& entry_of(Account& all, int fd) {
  const auto index = static_cast<std::size_t>(fd);
  if (index >= all.entries.size()) {
    all.entries.resize(index + 64);
  }
  return all.entries[index];
}

void end(Account& all, Entry& entry, State state, const Place& place) noexcept {
  if (entry.state == State::owned) {
    --all.figures.owned;
  }
  entry.state = state;
  entry.ended = place;
}

}  // namespace

Ticket adopt(int fd, const Place& place) noexcept {
  if (fd < 0) {
    return {};
  }
  struct stat status{};
  if (::fstat(fd, &status) != 0) {
    fail("descriptor " + std::to_string(fd) + " is taken at " + text_of(place) +
         ", but it is not open");
  }
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  Entry& entry = entry_of(all, fd);
  if (entry.state == State::owned) {
    if (is_same_file(entry, fd)) {
      fail("descriptor " + std::to_string(fd) + " is taken at " + text_of(place) + ", but " +
           fate_of(entry));
    }
    --all.figures.owned;  // The file it was is gone: somebody else has closed it.
  }
  entry = Entry{entry.generation + 1, State::owned, place, place, status.st_dev, status.st_ino};
  ++all.figures.adopted;
  ++all.figures.owned;
  return Ticket{entry.generation, place};
}

void give_away(int fd, const Ticket& ticket) noexcept {
  if (fd < 0) {
    return;
  }
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  ++all.figures.given_away;
  Entry& entry = entry_of(all, fd);
  if (entry.generation == ticket.generation) {
    end(all, entry, State::given_away, ticket.place);
  }
}

void closes(int fd, const Ticket& ticket, const Place& place) noexcept {
  const int saved = errno;
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  Entry& entry = entry_of(all, fd);
  const std::string wrong = objection(entry, fd, ticket);
  if (!wrong.empty()) {
    fail("descriptor " + std::to_string(fd) + " is closed at " + text_of(place) +
         " by the one who took it at " + text_of(ticket.place) + " (generation " +
         std::to_string(ticket.generation) + "), but " + wrong);
  }
  end(all, entry, State::closed, place);
  ++all.figures.closed;
  errno = saved;
}

Ticket watch(int fd) noexcept {
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  const auto index = static_cast<std::size_t>(fd);
  // Also not when its owner has lost it: whoever closed it there may have it by now.
  if (index >= all.entries.size() || all.entries[index].state != State::owned ||
      !is_same_file(all.entries[index], fd)) {
    return {};
  }
  return Ticket{all.entries[index].generation, all.entries[index].taken};
}

void delivers(int fd, const Ticket& ticket) noexcept {
  if (ticket.generation == 0) {
    return;
  }
  const int saved = errno;
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  ++all.figures.events_checked;
  const std::string wrong = objection(entry_of(all, fd), fd, ticket);
  if (!wrong.empty()) {
    fail("an event of descriptor " + std::to_string(fd) + ", taken at " + text_of(ticket.place) +
         " (generation " + std::to_string(ticket.generation) + "), is delivered, but " + wrong);
  }
  errno = saved;
}

Figures figures() noexcept {
  Account& all = account();
  const std::lock_guard lock(all.mutex);
  return all.figures;
}

}  // namespace cpploop::ledger

#endif

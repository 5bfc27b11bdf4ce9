#include "core/net/readiness_watchers.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "core/engine.h"

namespace cpploop {

ReadinessWatchers::~ReadinessWatchers() { assert(count_ == 0); }

void ReadinessWatchers::Watcher::on_readable() { engine.host().notify(reader); }
void ReadinessWatchers::Watcher::on_writable() { engine.host().notify(writer); }

ReadinessWatchers::Watcher* ReadinessWatchers::attached_watcher(int fd) {
  const auto index = static_cast<std::size_t>(fd);
  if (index >= by_fd_.size()) {
    if (!os::is_open(fd)) {
      return nullptr;  // Any number can come in here; the table grows for real ones alone.
    }
    by_fd_.resize(index + 1);
  }
  if (by_fd_[index] == nullptr) {
    by_fd_[index] = std::make_unique<Watcher>(engine_);
  }
  Watcher& watcher = *by_fd_[index];
  if (!watcher.channel.attached()) {
    engine_.backend().attach(watcher.channel, fd, Channel::Kind::readiness, &watcher);
  }
  return &watcher;
}

ReadinessWatchers::Added ReadinessWatchers::settle(Watcher& watcher, Wanted what, Token token,
                                                   int error) noexcept {
  if (error != 0) {
    if (watcher.channel.wanted == 0) {
      engine_.backend().detach(watcher.channel);
    }
    return {error, nullptr};
  }
  Token replaced = std::exchange(watcher.slot(what), token);
  if (replaced == nullptr) {
    ++count_;
  }
  return {0, replaced};
}

ReadinessWatchers::Added ReadinessWatchers::add(int fd, Wanted what, Token token) {
  Watcher* watcher = attached_watcher(fd);
  if (watcher == nullptr) {
    return {EBADF, nullptr};
  }
  return settle(*watcher, what, token, engine_.backend().watch(watcher->channel, what));
}

ReadinessWatchers::Added ReadinessWatchers::add_after_read(int fd, Token token, bool same_file) {
  if (Watcher* known = find(fd); known != nullptr && known->channel.resting && !same_file) {
    engine_.backend().detach(known->channel);
  }
  Watcher* watcher = attached_watcher(fd);
  if (watcher == nullptr) {
    return {EBADF, nullptr};
  }
  const int error = engine_.backend().watch_after_read(watcher->channel);
  return settle(*watcher, kWantReadable, token, error);
}

Token ReadinessWatchers::rest(int fd) noexcept {
  Watcher* watcher = find(fd);
  if (watcher == nullptr || watcher->reader == nullptr) {
    return nullptr;
  }
  engine_.backend().rest(watcher->channel);
  --count_;
  return std::exchange(watcher->reader, nullptr);
}

ReadinessWatchers::Watcher* ReadinessWatchers::find_process(pid_t process) const noexcept {
  const auto found = std::find_if(processes_.begin(), processes_.end(), [&](const auto& watcher) {
    return watcher->channel.attached() && watcher->channel.fd == process;
  });
  return found == processes_.end() ? nullptr : found->get();
}

ReadinessWatchers::Added ReadinessWatchers::add_process(pid_t process, Token token) {
  Backend& backend = engine_.backend();
  if (!backend.watches_processes()) {
    return {ENOSYS, nullptr};
  }
  if (find_process(process) != nullptr) {
    return {EEXIST, nullptr};
  }
  auto unused = std::find_if(processes_.begin(), processes_.end(),
                             [](const auto& watcher) { return !watcher->channel.attached(); });
  if (unused == processes_.end()) {
    unused = processes_.insert(unused, std::make_unique<Watcher>(engine_));
  }
  Watcher& watcher = **unused;
  backend.attach(watcher.channel, process, Channel::Kind::process, &watcher);
  return settle(watcher, kWantReadable, token, backend.watch(watcher.channel, kWantReadable));
}

Token ReadinessWatchers::remove_process(pid_t process) noexcept {
  Watcher* watcher = find_process(process);
  if (watcher == nullptr) {
    return nullptr;
  }
  engine_.backend().detach(watcher->channel);
  --count_;
  return std::exchange(watcher->reader, nullptr);
}

void ReadinessWatchers::look_again(int fd) noexcept {
  if (Watcher* watcher = find(fd); watcher != nullptr && watcher->channel.edge) {
    (void)engine_.backend().watch(watcher->channel, kWantReadable);
  }
}

Token ReadinessWatchers::remove(int fd, Wanted what) noexcept {
  Watcher* watcher = find(fd);
  if (watcher == nullptr || watcher->slot(what) == nullptr) {
    return nullptr;
  }
  engine_.backend().unwatch(watcher->channel, what);
  if (watcher->channel.wanted == 0) {
    // The watcher's memory stays for the next user of this number.
    engine_.backend().detach(watcher->channel);
  }
  --count_;
  return std::exchange(watcher->slot(what), nullptr);
}

Token ReadinessWatchers::at(int fd, Wanted what) const noexcept {
  Watcher* watcher = find(fd);
  return watcher == nullptr ? nullptr : watcher->slot(what);
}

ReadinessWatchers::Place ReadinessWatchers::place_of(Token token) const noexcept {
  for (const auto& watcher : by_fd_) {
    if (watcher != nullptr && (watcher->reader == token || watcher->writer == token)) {
      return {watcher->channel.fd, watcher->reader == token ? kWantReadable : kWantWritable};
    }
  }
  return {-1, kWantReadable};
}

void ReadinessWatchers::take_all(std::vector<Token>& removed) {
  removed.reserve(removed.size() + count_);
  for_each_watcher([&](Watcher& watcher) {
    for (const Wanted what : {kWantReadable, kWantWritable}) {
      if (watcher.slot(what) != nullptr) {
        removed.push_back(std::exchange(watcher.slot(what), nullptr));
      }
    }
    engine_.backend().detach(watcher.channel);
  });
  count_ = 0;
}

}  // namespace cpploop

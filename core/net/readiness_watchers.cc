#include "core/net/readiness_watchers.h"

#include <cassert>
#include <cerrno>
#include <utility>

#include "core/engine.h"

namespace cpploop {

ReadinessWatchers::~ReadinessWatchers() { assert(count_ == 0); }

void ReadinessWatchers::Watcher::on_readable() { engine.host().notify(reader); }
void ReadinessWatchers::Watcher::on_writable() { engine.host().notify(writer); }

ReadinessWatchers::Added ReadinessWatchers::add(int fd, Wanted what, Token token) {
  const auto index = static_cast<std::size_t>(fd);
  if (index >= by_fd_.size()) {
    if (!os::is_open(fd)) {
      return {EBADF, nullptr};  // Any number can come in here; the table grows for real ones alone.
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
  const int error = engine_.backend().watch(watcher.channel, what);
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

void ReadinessWatchers::take_all(std::vector<Token>& removed) {
  removed.reserve(removed.size() + count_);
  for (const auto& watcher : by_fd_) {
    if (watcher == nullptr) {
      continue;
    }
    for (const Wanted what : {kWantReadable, kWantWritable}) {
      if (watcher->slot(what) != nullptr) {
        removed.push_back(std::exchange(watcher->slot(what), nullptr));
      }
    }
    engine_.backend().detach(watcher->channel);
  }
  count_ = 0;
}

}  // namespace cpploop

#include "core/net/process_watchers.h"

#include <cassert>
#include <cerrno>
#include <utility>

#include "core/engine.h"

namespace cpploop {

ProcessWatchers::~ProcessWatchers() { assert(by_number_.empty()); }

void ProcessWatchers::Watcher::on_readable() { engine.host().notify(token); }

int ProcessWatchers::add(pid_t process, Token token) {
  Backend& backend = engine_.backend();
  if (!backend.watches_processes()) {
    return ENOSYS;
  }
  if (by_number_.contains(process)) {
    return EEXIST;
  }
  // Room for every watcher there is, so that removing one needs no memory.
  spare_.reserve(by_number_.size() + spare_.size() + 1);
  if (spare_.empty()) {
    spare_.push_back(std::make_unique<Watcher>(engine_));
  }
  Watcher& watcher = *spare_.back();
  auto& place = by_number_[process];
  try {
    backend.attach(watcher.channel, process, Channel::Kind::process, &watcher);
  } catch (...) {
    by_number_.erase(process);
    throw;
  }
  if (const int error = backend.watch(watcher.channel, kWantReadable); error != 0) {
    backend.detach(watcher.channel);
    by_number_.erase(process);
    return error;
  }
  watcher.token = token;
  place = std::move(spare_.back());
  spare_.pop_back();
  return 0;
}

Token ProcessWatchers::remove(pid_t process) noexcept {
  const auto found = by_number_.find(process);
  if (found == by_number_.end()) {
    return nullptr;
  }
  std::unique_ptr<Watcher> watcher = std::move(found->second);
  by_number_.erase(found);
  engine_.backend().detach(watcher->channel);
  const Token token = std::exchange(watcher->token, nullptr);
  spare_.push_back(std::move(watcher));
  return token;
}

void ProcessWatchers::take_all(std::vector<Token>& removed) {
  removed.reserve(removed.size() + by_number_.size());
  while (!by_number_.empty()) {
    removed.push_back(remove(by_number_.begin()->first));
  }
}

}  // namespace cpploop

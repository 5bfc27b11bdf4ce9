#include "core/engine.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/net/stream_socket.h"

namespace cpploop {
namespace {

// Has the memory of a callback that is used soon brought near: thousands of timers that fire
// together are long out of the caches.
void bring_near(Token token) noexcept {
  constexpr std::size_t kCacheLine = 64;
  const char* bytes = static_cast<const char*>(token);
  __builtin_prefetch(bytes);
  __builtin_prefetch(bytes + kCacheLine);
  __builtin_prefetch(bytes + 2 * kCacheLine);
}

}  // namespace

Engine::Engine(Host& host, BackendChoice choice) : host_(host), watchers_(*this) {
  inbox_ = std::make_unique<WakeupInbox>();
  backend_ = make_backend(choice, inbox_->fd());
}

Engine::Engine(Host& host, std::unique_ptr<WakeupInbox> inbox, std::unique_ptr<Backend> backend)
    : host_(host), inbox_(std::move(inbox)), backend_(std::move(backend)), watchers_(*this) {}

Engine::~Engine() = default;

int Engine::run() {
  // Also when memory runs out on the way: the next run() starts afresh.
  struct Reset {
    Engine& engine;
    ~Reset() {
      engine.stopping_ = false;
      engine.interrupted_ = false;
      engine.in_callback_ = false;
      engine.end_busy_period();
    }
  } const reset{*this};
  begin_busy_period();
  int error = 0;
  do {
    error = turn();
  } while (error == 0 && may_go_on());
  send_held();
  return error;
}

void Engine::begin_busy_period() noexcept {
  if (metrics_.measuring()) {
    metrics_.begin(monotonic_now_ns());
  }
  busy_.store(true, std::memory_order_relaxed);
}

void Engine::end_busy_period() noexcept {
  if (metrics_.measuring()) {
    metrics_.look(monotonic_now_ns());
  }
  busy_.store(false, std::memory_order_relaxed);
}

// The order of a turn, which is asyncio's: poll; queue what the poll found, then the timers that
// are due, behind what was ready before; run exactly that many. What those callbacks schedule waits
// for the next turn.
int Engine::turn() {
  metrics_.turns.add();
  flush_gathered();  // Something is left only where memory ran out.
  if (++busy_turns_ > kBusyTurnsMax) {
    busy_turns_ = 0;
    host_.stayed_busy();
    if (interrupted_) {
      return 0;
    }
  }
  if (inbox_->has_posts()) {
    inbox_->drain_into(ready_);
  }
  discard_cancelled_timers();
  const int error = poll();
  if (error != 0 || interrupted_) {
    return error;
  }
  queue_next_events();
  queue_due_timers();
  run_ready();
  return 0;
}

int Engine::poll() {
  const bool may_block = ready_.empty() && next_events_.empty() && !stopping_;
  if (!may_block && !backend_->has_channels()) {
    return 0;  // Only the wake-up is registered, and the inbox was looked at.
  }
  const std::int64_t limit_ns = may_block ? wait_limit_ns() : 0;
  if (interrupted_) {
    return 0;  // An overridden clock raised.
  }
  // Nothing runs between this and the wait: what was told to the kernel stays true.
  backend_->apply_changes();
  const bool measuring = metrics_.measuring();
  if (measuring) {
    metrics_.look(monotonic_now_ns());
  }
  IoResult result;
  if (limit_ns != 0 && inbox_->arm()) {
    const Backend::Blocking blocking(*backend_);
    busy_turns_ = 0;
    busy_.store(false, std::memory_order_relaxed);
    host_.about_to_block();
    result = backend_->wait(limit_ns);
    metrics_.waits.add();
    if (measuring) {
      metrics_.waited(monotonic_now_ns());
    }
    host_.woke_up();
    busy_.store(true, std::memory_order_relaxed);
    inbox_->disarm();
  } else {
    result = backend_->wait(0);
  }
  backend_->settle_sends();
  if (result.error == EINTR) {
    host_.wait_interrupted();
  } else if (!result.ok()) {
    return result.error;
  }
  if (inbox_->has_posts()) {
    inbox_->drain_into(ready_);
  }
  const std::size_t known = ready_.size();
  backend_->collect(ready_);
  metrics_.events.add(ready_.size() - known);
  if (backend_->woken()) {
    metrics_.wake_ups.add();
    inbox_->acknowledge();
  }
  return 0;
}

std::int64_t Engine::wait_limit_ns() {
  if (timers_.empty()) {
    return -1;
  }
  const std::int64_t now = now_ns();
  if (timers_.empty()) {
    return 0;  // An overridden clock cancelled the last one.
  }
  const std::int64_t deadline = timers_.next_deadline_ns();
  if (deadline <= now) {
    return 0;
  }
  // Unsigned, because an overridden clock may stand below zero.
  const std::uint64_t left = static_cast<std::uint64_t>(deadline) - static_cast<std::uint64_t>(now);
  return static_cast<std::int64_t>(std::min<std::uint64_t>(left, kLongestWaitNs));
}

void Engine::discard_cancelled_timers() {
  if (timers_.cancelled() == 0) {
    return;
  }
  if (timers_.wants_compaction()) {
    compact_timers();
    return;
  }
  // Only a wait has to know which timer is next.
  const bool may_wait = ready_.empty() && next_events_.empty();
  while (may_wait && !timers_.empty() && host_.is_cancelled(timers_.top())) {
    const Token token = timers_.pop();
    timers_.note_cancelled_gone();
    (void)host_.timer_left_heap(token);
    host_.drop(token);
  }
}

void Engine::compact_timers() {
  std::vector<Token> removed;
  timers_.compact([this](Token token) { return host_.is_cancelled(token); }, removed);
  for (const Token token : removed) {
    (void)host_.timer_left_heap(token);
  }
  for (const Token token : removed) {
    host_.drop(token);
  }
}

void Engine::queue_next_events() {
  if (next_events_.empty()) {
    return;
  }
  ready_.reserve(next_events_.size());
  for (NativeCallback* callback : next_events_) {
    ready_.push(ReadyEntry::of_native(callback));
  }
  next_events_.clear();
}

void Engine::queue_due_timers() {
  if (timers_.empty()) {
    return;
  }
  const std::int64_t now = now_ns();
  const std::size_t due = timers_.gather_due(now);
  if (due == 0) {
    return;
  }
  ready_.reserve(due);  // Should that throw, they are due again the next time.
  std::vector<Token> cancelled;
  cancelled.reserve(std::min(due, timers_.cancelled()));
  constexpr std::size_t kAhead = 6;
  for (std::size_t i = 0; i < due; ++i) {
    bring_near(timers_.due(std::min(i + kAhead, due - 1)));
    const Token token = timers_.due(i);
    if (host_.timer_left_heap(token)) {
      timers_.note_cancelled_gone();
      cancelled.push_back(token);
    } else {
      ready_.push(ReadyEntry::of_token(token));
      metrics_.timers.add();
    }
  }
  timers_.remove_due(due);
  for (const Token token : cancelled) {
    host_.drop(token);
  }
}

void Engine::run_ready() {
  if (ready_.size() > metrics_.ready_peak.get()) {
    metrics_.ready_peak.set(ready_.size());
  }
  // A callback that forks and returns in the child ends it there, too.
  for (std::size_t count = ready_.size(); count > 0 && !interrupted_ && !forked(); --count) {
    // Closing the loop from within is refused, but a fork's child may find the queue emptied.
    if (ready_.empty()) {
      return;
    }
    left_in_turn_ = count - 1;
    const ReadyEntry entry = ready_.pop();
    if (left_in_turn_ != 0 && !ready_.empty()) {
      if (const ReadyEntry& next = ready_.front(); next.kind == ReadyEntry::Kind::token) {
        bring_near(next.token);
      }
    }
    run_entry(entry);
  }
  flush_gathered();
  holding_.turn_over();
}

void Engine::run_entry(const ReadyEntry& entry) {
  callback_serial_.add();
  in_callback_ = true;
  switch (entry.kind) {
    case ReadyEntry::Kind::token:
      host_.run(entry.token);
      break;
    case ReadyEntry::Kind::native:
      entry.native->run();
      break;
    case ReadyEntry::Kind::io:
      if (timing_) {
        host_.io_begins();
        run_io(entry);
        host_.io_ended();
      } else {
        run_io(entry);
      }
      break;
  }
  in_callback_ = false;
  if (holding_.timing()) {
    after_writing();
  }
}

// At the end of a callback that wrote, or that ran while others' writes were held.
void Engine::after_writing() {
  const std::int64_t now = writing_now_ns();
  holding_.callback_over(callback_serial_.get(), now);
  if (flush_after_callback_) {
    flush_gathered();
  }
  // The last callback's are sent by the end of the turn, or with the poll.
  if (left_in_turn_ != 0 && has_held() && holding_.held_long_enough(now)) {
    send_held();
  }
  if (!has_held()) {
    holding_.stop_timing();
  }
}

// Reading and writing are two callbacks. When the first raises what must leave run(), the second is
// the one that the next run() begins with.
void Engine::run_io(const ReadyEntry& entry) {
  if ((entry.io_events & kIoReadable) != 0) {
    backend_->dispatch(entry.channel, kIoReadable);
  }
  if ((entry.io_events & kIoWritable) != 0) {
    if (interrupted_) [[unlikely]] {
      // Where memory is short, the next poll reports it again.
      (void)ready_.push_front(ReadyEntry::of_io(entry.channel, kIoWritable));
    } else {
      callback_serial_.add();
      backend_->dispatch(entry.channel, kIoWritable);
    }
  }
  if ((entry.io_events & kIoSendDue) != 0) {
    backend_->dispatch(entry.channel, kIoSendDue);
  }
}

void Engine::hold_write(StreamSocket& socket, Until until) {
  if (!has_held()) {
    holding_.begin();
  }
  if (until == Until::turn_ends && backend_->batches_sends()) {
    backend_->send_with_poll(socket.channel_);
    return;
  }
  flush_list_.push_back(&socket);
  socket.in_flush_list_ = true;
  flush_after_callback_ = flush_after_callback_ || until == Until::callback_ends;
}

void Engine::cancel_flush(StreamSocket& socket) noexcept {
  std::replace(flush_list_.begin(), flush_list_.end(), &socket,
               static_cast<StreamSocket*>(nullptr));
  socket.in_flush_list_ = false;
}

void Engine::flush_gathered() {
  if (flush_list_.empty() || forked()) {
    return;  // In a forked child it is the parent's to send.
  }
  flush_after_callback_ = false;
  // Flushing may run user code (pause_writing), and that may write to other sockets. The list can
  // grow while it is walked; it is not a callback, so those writes go out at once.
  for (std::size_t i = 0; i < flush_list_.size(); ++i) {
    StreamSocket* socket = flush_list_[i];
    if (socket == nullptr) {
      continue;
    }
    flush_list_[i] = nullptr;
    socket->in_flush_list_ = false;
    StreamEvents& events = socket->events_;
    events.hold();
    socket->flush();
    events.release();
  }
  flush_list_.clear();
}

void Engine::send_what_is_due() {
  if (backend_->has_sends_due() && !forked() && !closed_) {
    backend_->send_what_is_due();
  }
}

void Engine::send_held() {
  const bool in_callback = std::exchange(in_callback_, false);
  flush_gathered();
  send_what_is_due();
  in_callback_ = in_callback;
}

void Engine::abandon_after_fork() noexcept {
  inbox_->abandon_after_fork();
  backend_->abandon_after_fork();
}

int Engine::turn_once() {
  // The callback that calls this goes on afterwards, and what it writes then is gathered or not as
  // before.
  struct Restore {
    Engine& engine;
    const bool in_callback;
    const bool nested;
    ~Restore() {
      engine.interrupted_ = false;
      engine.in_callback_ = in_callback;
      if (!nested) {
        engine.end_busy_period();
      }
    }
  } const restore{*this, in_callback_, busy()};
  if (!busy()) {
    begin_busy_period();
  }
  send_held();  // The turn may wait for an answer to what the caller has written.
  const int error = turn();
  send_held();
  return error;
}

void Engine::drop_ready_callbacks() {
  if (inbox_->has_posts()) {
    inbox_->drain_into(ready_);
  }
  std::vector<Token> tokens;
  ready_.take_tokens(tokens);
  for (const Token token : tokens) {
    host_.drop(token);
  }
}

std::vector<Token> Engine::take_timers() {
  std::vector<Token> tokens;
  timers_.take_all(tokens);
  for (const Token token : tokens) {
    (void)host_.timer_left_heap(token);
  }
  return tokens;
}

void Engine::drop_timers() {
  for (const Token token : take_timers()) {
    host_.drop(token);
  }
}

void Engine::close() {
  if (closed_) {
    return;
  }
  closed_ = true;
  inbox_->close();
  inbox_->drain_into(ready_);
  std::vector<Token> tokens = take_timers();
  watchers_.take_all(tokens);
  backend_->close();
  std::vector<NativeCallback*> natives = std::exchange(next_events_, {});
  while (!ready_.empty()) {
    const ReadyEntry entry = ready_.pop();
    if (entry.kind == ReadyEntry::Kind::token) {
      tokens.push_back(entry.token);
    } else if (entry.kind == ReadyEntry::Kind::native) {
      natives.push_back(entry.native);
    }
  }
  for (NativeCallback* native : natives) {
    native->drop();
  }
  for (const Token token : tokens) {
    host_.drop(token);
  }
}

}  // namespace cpploop

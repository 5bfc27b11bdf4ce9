#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/backend/choice.h"
#include "core/backend/scripted_backend.h"
#include "core/engine.h"
#include "core/net/stream_socket.h"

// What the engine's tests share: a host that is made of std::function, the owner of a stream that
// writes everything down, and an engine on a fake clock.
namespace cpploop::testing {

using Lines = std::vector<std::string>;

// A descriptor that nothing can be done with, for a backend that does not look at it.
[[nodiscard]] inline UniqueFd some_fd() {
  return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC));
}

struct SocketPair {
  UniqueFd near_end;
  UniqueFd far_end;
};

[[nodiscard]] inline SocketPair socket_pair() {
  int fds[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

[[nodiscard]] inline bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

// What stands for a Python handle.
struct Callback {
  std::function<void()> function{};
  bool cancelled = false;
  bool in_heap = false;
  int runs = 0;     // Given back through Host::run().
  int notices = 0;  // Host::notify() of a watcher's, which stays the engine's.
  int drops = 0;    // Given back through Host::drop().
};

class TestHost final : public Host {
 public:
  [[nodiscard]] Callback* make(std::function<void()> function) {
    callbacks_.push_back(std::make_unique<Callback>());
    callbacks_.back()->function = std::move(function);
    return callbacks_.back().get();
  }
  // Tokens that the engine was given and has not handed back; each must come back exactly once.
  [[nodiscard]] std::size_t outstanding() const {
    std::size_t count = 0;
    for (const auto& callback : callbacks_) {
      EXPECT_LE(callback->runs + callback->drops, 1);
      count += callback->runs + callback->drops == 0 ? 1 : 0;
    }
    return count;
  }

  void run(Token token) override {
    auto* callback = static_cast<Callback*>(token);
    ++callback->runs;
    if (!callback->cancelled && callback->function) {
      callback->function();
    }
  }
  void drop(Token token) noexcept override {
    auto* callback = static_cast<Callback*>(token);
    ++callback->drops;
    if (on_drop) {
      on_drop(callback);
    }
  }
  void notify(Token token) override {
    auto* callback = static_cast<Callback*>(token);
    ++callback->notices;
    if (callback->function) {
      // A copy, because the callback may replace itself.
      const auto function = callback->function;
      function();
    }
  }
  bool timer_left_heap(Token token) noexcept override {
    auto* callback = static_cast<Callback*>(token);
    callback->in_heap = false;
    return callback->cancelled;
  }
  bool is_cancelled(Token token) const noexcept override {
    return static_cast<Callback*>(token)->cancelled;
  }
  void about_to_block() noexcept override { ++blocks; }
  void woke_up() override { ++wakes; }
  void wait_interrupted() override {
    ++interruptions;
    if (on_interrupted) {
      on_interrupted();
    }
  }
  void io_begins() noexcept override { ++io_begun; }
  void io_ended() noexcept override { ++io_over; }
  void stayed_busy() noexcept override { ++busy; }

  int blocks = 0;
  int wakes = 0;
  int interruptions = 0;
  int io_begun = 0;
  int io_over = 0;
  int busy = 0;
  std::function<void()> on_interrupted{};
  std::function<void(Callback*)> on_drop{};

 private:
  std::vector<std::unique_ptr<Callback>> callbacks_;
};

// An engine over scripts and a clock that stands still.
struct ScriptedEngine {
  ScriptedEngine() : ScriptedEngine(std::make_unique<WakeupInbox>()) {}
  explicit ScriptedEngine(std::unique_ptr<WakeupInbox> inbox)
      : backend(new ScriptedBackend(&clock)),
        engine(host, std::move(inbox), std::unique_ptr<Backend>(backend)) {
    engine.set_clock(&clock);
  }
  ~ScriptedEngine() {
    engine.close();
    EXPECT_EQ(host.outstanding(), 0U);
  }
  ScriptedEngine(const ScriptedEngine&) = delete;
  ScriptedEngine& operator=(const ScriptedEngine&) = delete;

  Callback* call_soon(std::function<void()> function) {
    Callback* callback = host.make(std::move(function));
    engine.push_ready(ReadyEntry::of_token(callback));
    return callback;
  }
  Callback* call_at(std::int64_t deadline_ns, std::function<void()> function) {
    Callback* callback = host.make(std::move(function));
    callback->in_heap = true;
    engine.timers().push(deadline_ns, callback);
    return callback;
  }
  // As TimerHandle.cancel() does it.
  void cancel(Callback* callback) {
    if (callback->cancelled) {
      return;
    }
    callback->cancelled = true;
    if (callback->in_heap) {
      if (engine.timers().remove_if_last(callback)) {
        callback->in_heap = false;
        host.drop(callback);
      } else {
        engine.timers().note_cancelled();
      }
    }
  }
  // Runs `function` as a callback of its own, and the turn around it.
  void in_callback(std::function<void()> function) {
    call_soon(std::move(function));
    ASSERT_EQ(engine.turn(), 0);
  }
  // One turn that looks at the descriptors and does not wait for them.
  void turn() {
    call_soon([] {});
    ASSERT_EQ(engine.turn(), 0);
  }

  TestHost host;
  FakeClock clock;
  ScriptedBackend* backend;
  Engine engine;
};

// The owner of a stream socket: writes down what it is told, and does what a test hangs into it.
class StreamOwner : public StreamEvents {
 public:
  StreamOwner(Engine& engine, UniqueFd fd)
      : socket(std::make_unique<StreamSocket>(engine, std::move(fd), *this)) {}
  virtual ~StreamOwner() {
    socket.reset();
    EXPECT_EQ(holds, 0);
    EXPECT_EQ(owners, 0);
  }

  // The two steps of a write, as the binding takes them.
  void write(const std::string& bytes) {
    const std::size_t dealt_with = socket->begin_write(bytes.data(), bytes.size());
    if (dealt_with < bytes.size()) {
      queue(bytes.substr(dealt_with));
      socket->end_write();
    }
  }
  void queue(std::string bytes) {
    auto* owner = new std::string(std::move(bytes));
    ++owners;
    socket->queue(owner->data(), owner->size(), owner);
  }
  void close() {
    if (socket->close()) {
      log.push_back("lost is due");
    }
  }
  void abort() {
    if (socket->force_close()) {
      log.push_back("lost is due");
    }
  }
  [[nodiscard]] Lines take_log() { return std::exchange(log, {}); }

  void hold() noexcept override { ++holds; }
  void release() noexcept override {
    --holds;
    if (holds == 0 && drop_on_release) {
      socket.reset();
    }
  }
  ReceiveBuffer receive_buffer() override {
    if (on_receive_buffer) {
      on_receive_buffer();
    }
    buffer.resize(buffer_size != 0 ? buffer_size : socket->receive_size());
    return {buffer.data(), refuse_buffer ? 0 : buffer.size()};
  }
  void on_bytes(std::size_t count) override {
    if (count != 0) {
      received.append(buffer.data(), count);
      tell("bytes " + std::to_string(count), on_data);
    }
  }
  void on_end_of_stream() override { tell("end", on_end); }
  bool shares_descriptor() noexcept override { return shares; }
  void on_receive_error(int error) override { failed("receive error ", error); }
  void on_send_error(int error) override { failed("send error ", error); }
  void on_shutdown_error(int error) override {
    log.push_back("shutdown error " + std::to_string(error));
  }
  void on_pause_writing() override { tell("pause", on_pause); }
  void on_resume_writing() override { tell("resume", on_resume); }
  void on_drained() override { tell("drained", on_drain); }
  void on_closed_after_flush() override { log.push_back("closed"); }
  void drop_owner(WriteQueue::Owner owner) noexcept override {
    --owners;
    delete static_cast<std::string*>(owner);
  }

  std::unique_ptr<StreamSocket> socket;
  Lines log;
  std::string received;
  std::vector<char> buffer;
  std::size_t buffer_size = 0;  // Zero: as many as the socket suggests.
  bool refuse_buffer = false;
  bool drop_on_release = false;
  bool shares = false;
  int holds = 0;
  int owners = 0;
  std::function<void()> on_receive_buffer{};
  std::function<void()> on_data{};
  std::function<void()> on_end{};
  std::function<void()> on_error{};
  std::function<void()> on_pause{};
  std::function<void()> on_resume{};
  std::function<void()> on_drain{};

 private:
  void tell(std::string line, const std::function<void()>& hook) {
    log.push_back(std::move(line));
    if (hook) {
      const auto copy = hook;
      copy();
    }
  }
  // As the binding's fatal error does, unless a test does otherwise.
  void failed(const char* what, int error) {
    log.push_back(what + std::to_string(error));
    if (on_error) {
      on_error();
    } else {
      abort();
    }
  }
};

// An engine on the ring. Where there is none the test is skipped, and `engine_` stays null.
class RingEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string refusal = io_uring_refusal(); !refusal.empty()) {
      GTEST_SKIP() << "no io_uring here, " << refusal;
    }
    engine_ = std::make_unique<Engine>(host_, BackendChoice::io_uring);
    ASSERT_STREQ(engine_->backend().name(), "io_uring");
  }
  void TearDown() override {
    if (engine_ != nullptr) {
      engine_->close();
    }
  }
  void call_soon(std::function<void()> function) {
    engine_->push_ready(ReadyEntry::of_token(host_.make(std::move(function))));
  }
  // One turn that looks at the descriptors and does not wait for them.
  void turn() {
    call_soon([] {});
    ASSERT_EQ(engine_->turn(), 0);
  }

  TestHost host_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace cpploop::testing

#include "core/backend/io_uring_backend.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include "core/engine.h"
#include "core/net/stream_socket.h"
#include "tests/core/support.h"

// What is the ring's own: when a connection is received by it, what happens to bytes that nobody
// may have yet, sends that go out with the wait, and rings that change their thread. What every
// backend promises is in backend_test.cc.
namespace cpploop {
namespace {

using testing::Lines;

// Counts bytes, and how they came.
class Bytes final : public StreamSink {
 public:
  void hold() noexcept override {}
  void release() noexcept override {}
  ReceiveBuffer receive_buffer() override { return {buffer.data(), buffer.size()}; }
  void on_received(IoResult result) override {
    if (result.ok()) {
      text.append(buffer.data(), static_cast<std::size_t>(result.value));
      ended = ended || result.value == 0;
      ++deliveries;
    } else if (!result.would_block()) {
      error = result.error;
    }
  }
  void on_send_ready() override { ++send_ready; }
  std::span<const iovec> parts_to_send(std::span<iovec> room) noexcept override {
    const std::size_t count = std::min(room.size(), to_send.size());
    std::copy_n(to_send.begin(), count, room.begin());
    return room.first(count);
  }
  bool on_sent(IoResult result) noexcept override {
    sent.push_back(result.ok() ? result.value : -result.error);
    return asks_again;
  }
  void on_send_due() override { ++send_due; }

  std::string buffer = std::string(64 * 1024, '\0');
  std::string text;
  std::vector<iovec> to_send;
  std::vector<std::int64_t> sent;
  bool asks_again = false;
  bool ended = false;
  int error = 0;
  int deliveries = 0;
  int send_ready = 0;
  int send_due = 0;
};

// A descriptor of somebody else's, and how often it was found to be readable.
class Watched final : public ReadinessSink {
 public:
  explicit Watched(Backend& backend) : backend_(backend), pair_(testing::socket_pair()) {
    backend_.attach(channel_, pair_.near_end.get(), Channel::Kind::readiness, this);
    EXPECT_EQ(backend_.watch(channel_, kWantReadable), 0);
  }
  ~Watched() { backend_.detach(channel_); }
  void hold() noexcept override {}
  void release() noexcept override {}
  void on_readable() override {
    char byte = 0;
    EXPECT_EQ(::recv(pair_.near_end.get(), &byte, 1, 0), 1);
    ++found;
  }
  void on_writable() override {}
  void become_readable() { EXPECT_EQ(::send(pair_.far_end.get(), "w", 1, 0), 1); }

  int found = 0;

 private:
  Backend& backend_;
  testing::SocketPair pair_;
  Channel channel_;
};

class IoUringBackendTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kAWhileNs = 5 * kNanosecondsPerSecond;
  // So many small messages make a connection one of the ring's.
  static constexpr int kSmallMessages = 8;

  void SetUp() override {
    os::IoRing::Refusal refusal;
    backend_ = IoUringBackend::open(inbox_.fd(), refusal);
    if (backend_ == nullptr) {
      GTEST_SKIP() << "no io_uring here, " << io_uring_refusal();
    }
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends_), 0);
    near_.reset(ends_[0]);
    far_.reset(ends_[1]);
    backend_->attach(channel_, near_.get(), Channel::Kind::stream, &sink_);
  }
  void TearDown() override {
    if (backend_ != nullptr) {
      backend_->detach(channel_);
    }
  }

  void turn(std::int64_t timeout_ns = 0) {
    backend_->apply_changes();
    IoResult waited = backend_->wait(timeout_ns);
    while (waited.error == EINTR) {  // The end of the ring of the test before is such a signal.
      waited = backend_->wait(timeout_ns);
    }
    ASSERT_TRUE(waited.ok());
    backend_->settle_sends();
    backend_->collect(ready_);
    while (!ready_.empty()) {
      const ReadyEntry entry = ready_.pop();
      backend_->dispatch(entry.channel, entry.io_events);
    }
  }
  void far_sends(const std::string& bytes) {
    ASSERT_EQ(::send(far_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  [[nodiscard]] std::string far_gets() {
    std::string bytes(1 << 20, '\0');
    const ssize_t count = ::recv(far_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    return bytes.substr(0, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
  }
  // Small messages, until the ring receives and waits for more.
  void become_the_rings() {
    backend_->start_receive(channel_);
    for (int i = 0; i < kSmallMessages; ++i) {
      far_sends("s");
      turn(kAWhileNs);
    }
    turn();
    ASSERT_FALSE(backend_->reads_by_poll(channel_));
    sink_.text.clear();
    sink_.deliveries = 0;
  }
  // So many reports of the set alone that the next wait is the set's.
  void enter_the_set(Watched& watched) {
    for (int i = 0; i < 20; ++i) {
      watched.become_readable();
      turn(kAWhileNs);
    }
    ASSERT_TRUE(backend_->waits_in_set());
  }
  void fill() {
    const std::string block(1 << 16, 'f');
    while (os::send(near_.get(), block.data(), block.size()).ok()) {
    }
    while (os::send(near_.get(), "f", 1).ok()) {
    }
  }
  static iovec part(const std::string& bytes) {
    return {const_cast<char*>(bytes.data()), bytes.size()};
  }

  WakeupInbox inbox_;
  std::unique_ptr<IoUringBackend> backend_;
  int ends_[2] = {-1, -1};
  UniqueFd near_;
  UniqueFd far_;
  Bytes sink_;
  Channel channel_;
  ReadyQueue ready_;
};

TEST_F(IoUringBackendTest, SmallMessagesMakeItReceiveAndLargeOnesEndThat) {
  backend_->start_receive(channel_);
  turn();
  EXPECT_TRUE(backend_->reads_by_poll(channel_));
  become_the_rings();
  std::string sent(20 * os::IoRing::kBufferSize, 'L');
  for (std::size_t i = 0; i < sent.size(); ++i) {
    sent[i] = static_cast<char>('a' + i % 23);
  }
  far_sends(sent);
  for (int i = 0; i < 10 && sink_.text.size() < sent.size(); ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink_.text, sent);
  EXPECT_TRUE(backend_->reads_by_poll(channel_));
  far_sends(sent);
  sink_.text.clear();
  for (int i = 0; i < 10 && sink_.text.size() < sent.size(); ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink_.text, sent);
}

TEST_F(IoUringBackendTest, MoreThanAllBuffersTogetherArrivesWholeAndInOrder) {
  backend_->receive_from_the_start(true);
  backend_->start_receive(channel_);
  turn();
  const int room = 8 << 20;
  ASSERT_EQ(::setsockopt(far_.get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)), 0);
  std::string expected;
  for (int round = 0; round < 40; ++round) {
    std::string block(100'000, '\0');
    for (std::size_t i = 0; i < block.size(); ++i) {
      block[i] = static_cast<char>((expected.size() + i) * 7 % 251);
    }
    ssize_t taken = 0;
    while ((taken = ::send(far_.get(), block.data(), block.size(), MSG_NOSIGNAL)) > 0) {
      expected.append(block, 0, static_cast<std::size_t>(taken));
      block.erase(0, static_cast<std::size_t>(taken));
      if (block.empty()) {
        break;
      }
    }
    turn();
  }
  far_.reset();
  for (int i = 0; i < 1000 && !sink_.ended; ++i) {
    turn(kAWhileNs);
  }
  EXPECT_GT(expected.size(), os::IoRing::kBuffers * os::IoRing::kBufferSize);
  EXPECT_TRUE(sink_.text == expected);
}

TEST_F(IoUringBackendTest, BytesThatCameBeforeAPauseWaitForItsEnd) {
  become_the_rings();
  far_sends("early");
  backend_->apply_changes();
  ASSERT_TRUE(backend_->wait(kAWhileNs).ok());
  backend_->collect(ready_);
  backend_->stop_receive(channel_);
  while (!ready_.empty()) {
    const ReadyEntry entry = ready_.pop();
    backend_->dispatch(entry.channel, entry.io_events);
  }
  turn();
  far_sends(" and late");
  turn();
  EXPECT_EQ(sink_.text, "");
  backend_->start_receive(channel_);
  for (int i = 0; i < 5 && sink_.text.size() < 14; ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink_.text, "early and late");
}

TEST_F(IoUringBackendTest, OneConnectionCannotKeepTheBuffersFromOthersByPausing) {
  become_the_rings();
  int others[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, others), 0);
  const UniqueFd near(others[0]);
  const UniqueFd far(others[1]);
  Bytes sink;
  Channel other;
  backend_->receive_from_the_start(true);
  backend_->attach(other, near.get(), Channel::Kind::stream, &sink);
  backend_->start_receive(other);
  turn();
  for (unsigned i = 0; i < os::IoRing::kBuffers + 10; ++i) {
    far_sends("x");
    backend_->apply_changes();
    ASSERT_TRUE(backend_->wait(0).ok());
    backend_->collect(ready_);
    backend_->stop_receive(channel_);
    while (!ready_.empty()) {
      (void)ready_.pop();
    }
    backend_->start_receive(channel_);
  }
  ASSERT_EQ(::send(far.get(), "other", 5, 0), 5);
  for (int i = 0; i < 5 && sink.text.empty(); ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink.text, "other");
  for (int i = 0; i < 5 && sink_.text.size() < os::IoRing::kBuffers + 10U; ++i) {
    turn();
  }
  EXPECT_EQ(sink_.text, std::string(os::IoRing::kBuffers + 10, 'x'));
  backend_->detach(other);
}

// Operations hold the file; the other end must see it closed when its owner closes it.
TEST_F(IoUringBackendTest, DetachingLetsGoOfTheFileAtOnce) {
  become_the_rings();
  backend_->want_send_ready(channel_);
  fill();
  turn();
  backend_->detach(channel_);
  near_.reset();
  std::string rest(1 << 20, '\0');
  ssize_t count = 0;
  while ((count = ::recv(far_.get(), rest.data(), rest.size(), MSG_DONTWAIT)) > 0) {
  }
  EXPECT_EQ(count, 0) << "the end of the stream, and not EAGAIN";
}

TEST_F(IoUringBackendTest, ErrorThatAReceiveTookIsTheReasonOfASendToo) {
  become_the_rings();
  const std::string unread(10, 'u');
  ASSERT_TRUE(os::send(near_.get(), unread.data(), unread.size()).ok());
  far_.reset();  // With bytes unread: a reset.
  backend_->apply_changes();
  ASSERT_TRUE(backend_->wait(kAWhileNs).ok());
  backend_->collect(ready_);
  const iovec bytes = part(unread);
  EXPECT_EQ(backend_->send(channel_, {&bytes, 1}).error, ECONNRESET);
}

TEST_F(IoUringBackendTest, SendsOfATurnGoOutWithItsWait) {
  const std::string first = "head ";
  const std::string second = "body";
  sink_.to_send = {part(first), part(second)};
  EXPECT_TRUE(backend_->batches_sends());
  EXPECT_FALSE(backend_->has_channels());
  backend_->send_with_poll(channel_);
  backend_->send_with_poll(channel_);
  EXPECT_TRUE(backend_->has_channels());
  EXPECT_EQ(far_gets(), "");
  turn();
  EXPECT_EQ(far_gets(), "head body");
  EXPECT_EQ(sink_.sent, std::vector<std::int64_t>{9});
  EXPECT_FALSE(backend_->has_sends_due());
  turn();
  EXPECT_EQ(sink_.sent.size(), 1U);
}

TEST_F(IoUringBackendTest, SendsDoNotEndAWaitForOtherThings) {
  const std::string bytes = "bytes";
  sink_.to_send = {part(bytes)};
  backend_->send_with_poll(channel_);
  const std::int64_t before_ns = monotonic_now_ns();
  backend_->apply_changes();
  (void)backend_->wait(20'000'000);
  EXPECT_GE(monotonic_now_ns() - before_ns, 20'000'000);
  backend_->settle_sends();
  EXPECT_EQ(sink_.sent, std::vector<std::int64_t>{5});
}

TEST_F(IoUringBackendTest, SendThatTheKernelHasNoRoomForIsAskedForAgain) {
  fill();
  const std::string bytes = "bytes";
  sink_.to_send = {part(bytes)};
  sink_.asks_again = true;
  backend_->send_with_poll(channel_);
  turn();
  EXPECT_EQ(sink_.sent, std::vector<std::int64_t>{-EAGAIN});
  EXPECT_EQ(sink_.send_due, 1);
}

// Nothing else may ever happen: the peer may be waiting for the rest.
TEST_F(IoUringBackendTest, SendThatFailsOrFallsShortEndsTheWait) {
  const std::string bytes(1 << 20, 'b');
  const std::vector<iovec> wholes[] = {{part(bytes)}, {part(bytes), part(bytes)}};
  sink_.asks_again = true;
  for (const std::vector<iovec>& whole : wholes) {
    (void)far_gets();
    sink_.to_send = whole;
    sink_.sent.clear();
    for (int i = 0; i < 2; ++i) {
      const std::int64_t before_ns = monotonic_now_ns();
      backend_->send_with_poll(channel_);
      turn(kAWhileNs);
      EXPECT_LT(monotonic_now_ns() - before_ns, kAWhileNs);
    }
    ASSERT_EQ(sink_.sent.size(), 2U);
    EXPECT_EQ(sink_.sent[0], static_cast<std::int64_t>(far_gets().size()));
    EXPECT_EQ(sink_.sent[1], -EAGAIN);
    EXPECT_EQ(std::exchange(sink_.send_due, 0), 2);
  }
}

TEST_F(IoUringBackendTest, SendToNobodyIsAnError) {
  far_.reset();
  const std::string bytes = "bytes";
  sink_.to_send = {part(bytes)};
  backend_->send_with_poll(channel_);
  turn();
  EXPECT_EQ(sink_.sent, std::vector<std::int64_t>{-EPIPE});
}

TEST_F(IoUringBackendTest, MoreSendsThanOneCallTakesGoOutOneAfterAnother) {
  struct Connection {
    UniqueFd near;
    UniqueFd far;
    Bytes sink;
    Channel channel;
  };
  std::vector<std::unique_ptr<Connection>> connections;
  const std::string bytes = "all";
  for (int i = 0; i < 400; ++i) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    auto connection = std::make_unique<Connection>();
    connection->near.reset(ends[0]);
    connection->far.reset(ends[1]);
    connection->sink.to_send = {part(bytes), part(bytes)};
    backend_->attach(connection->channel, ends[0], Channel::Kind::stream, &connection->sink);
    backend_->send_with_poll(connection->channel);
    connections.push_back(std::move(connection));
  }
  while (backend_->has_sends_due()) {
    turn();
  }
  for (const auto& connection : connections) {
    EXPECT_EQ(connection->sink.sent, std::vector<std::int64_t>{6});
    char got[8];
    EXPECT_EQ(::recv(connection->far.get(), got, sizeof(got), MSG_DONTWAIT), 6);
    backend_->detach(connection->channel);
  }
}

TEST_F(IoUringBackendTest, WhatIsDueIsSentWithoutAPollWhenNoneFollows) {
  backend_->send_with_poll(channel_);
  backend_->send_what_is_due();
  EXPECT_EQ(sink_.send_due, 1);
  EXPECT_FALSE(backend_->has_sends_due());
}

TEST_F(IoUringBackendTest, RingFollowsTheLoopToAnotherThread) {
  become_the_rings();
  far_sends("for the other thread");
  std::thread([&] {
    for (int i = 0; i < 5 && sink_.text.empty(); ++i) {
      turn(kAWhileNs);
    }
  }).join();
  EXPECT_EQ(sink_.text, "for the other thread");
  far_sends(", and back");
  for (int i = 0; i < 5 && sink_.text.size() < 30; ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink_.text, "for the other thread, and back");
}

// To the kernel they are two threads, although the second one is given the identifier of the first.
TEST_F(IoUringBackendTest, RingFollowsTheLoopThroughThreadsThatEnd) {
  become_the_rings();
  std::string expected;
  for (const std::string text : {"one", "two", "three"}) {
    far_sends(text);
    expected += text;
    std::thread([&] {
      for (int i = 0; i < 5 && sink_.text.size() < expected.size(); ++i) {
        turn(kAWhileNs);
      }
    }).join();
    EXPECT_EQ(sink_.text, expected);
    EXPECT_STREQ(backend_->name(), "io_uring");
    EXPECT_FALSE(backend_->reads_by_poll(channel_));
  }
}

// As close() of a server in another thread does it, which has the lock that the wait has given up.
TEST_F(IoUringBackendTest, DetachingInAnotherThreadEndsTheWait) {
  become_the_rings();
  backend_->apply_changes();
  {
    const Backend::Blocking blocking(*backend_);
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      backend_->detach(channel_);
      near_.reset();
    });
    EXPECT_TRUE(backend_->wait(-1).ok());
    other.join();
  }
  backend_->settle_sends();
  backend_->collect(ready_);
  EXPECT_TRUE(backend_->woken());
  EXPECT_TRUE(ready_.empty());
  inbox_.acknowledge();
  turn();
  char byte = 0;
  ASSERT_EQ(::fcntl(far_.get(), F_SETFL, 0), 0);
  EXPECT_EQ(::recv(far_.get(), &byte, 1, 0), 0) << "the peer sees that it was closed";
  EXPECT_STREQ(backend_->name(), "io_uring");
}

// The wait is over and its thread has not got the lock back: the sends that went out with it are
// settled by it, not by who moves the ring.
TEST_F(IoUringBackendTest, DetachingInAnotherThreadLeavesSendsUnderWayAlone) {
  testing::SocketPair pair = testing::socket_pair();
  Bytes other_sink;
  Channel other;
  backend_->attach(other, pair.near_end.get(), Channel::Kind::stream, &other_sink);
  backend_->start_receive(other);
  turn();
  const std::string bytes = "once";
  sink_.to_send = {part(bytes)};
  backend_->send_with_poll(channel_);
  backend_->apply_changes();
  {
    const Backend::Blocking blocking(*backend_);
    EXPECT_TRUE(backend_->wait(1'000'000).ok());
    std::thread([&] { backend_->detach(other); }).join();
  }
  backend_->settle_sends();
  EXPECT_EQ(sink_.sent, (std::vector<std::int64_t>{4}));
  EXPECT_EQ(far_gets(), "once");
}

TEST_F(IoUringBackendTest, AnotherThreadMayDetachAndClose) {
  become_the_rings();
  std::thread([&] {
    backend_->detach(channel_);
    near_.reset();
    backend_->close();
  }).join();
  char byte = 0;
  ASSERT_EQ(::fcntl(far_.get(), F_SETFL, 0), 0);
  EXPECT_EQ(::recv(far_.get(), &byte, 1, 0), 0);
}

TEST_F(IoUringBackendTest, SignalEndsAWaitThatAlsoSends) {
  struct sigaction action{};
  struct sigaction before{};
  action.sa_handler = [](int) {};
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  const std::string bytes = "bytes";
  sink_.to_send = {part(bytes)};
  backend_->send_with_poll(channel_);
  const pthread_t me = ::pthread_self();
  std::thread other([me] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ::pthread_kill(me, SIGUSR1);
  });
  backend_->apply_changes();
  EXPECT_EQ(backend_->wait(-1).error, EINTR);
  other.join();
  backend_->settle_sends();
  EXPECT_EQ(far_gets(), "bytes");
  ASSERT_EQ(::sigaction(SIGUSR1, &before, nullptr), 0);
}

TEST_F(IoUringBackendTest, WaitsInTheSetWhileNothingElseReports) {
  become_the_rings();
  Watched watched(*backend_);
  enter_the_set(watched);
  EXPECT_EQ(watched.found, 20);
  far_sends("to the ring");
  turn(kAWhileNs);
  EXPECT_EQ(sink_.text, "to the ring");
  watched.become_readable();
  turn(kAWhileNs);
  EXPECT_EQ(watched.found, 21);
  EXPECT_FALSE(backend_->waits_in_set());
}

TEST_F(IoUringBackendTest, OtherThreadsAndSendsEndAWaitInTheSet) {
  const std::string bytes = "bytes";
  sink_.to_send = {part(bytes)};
  Watched watched(*backend_);
  for (int round = 1; round <= 3; ++round) {
    enter_the_set(watched);
    ASSERT_TRUE(inbox_.arm());
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      if (round == 3) {
        far_sends("while it waits");
      } else {
        inbox_.wake();
      }
    });
    if (round == 2) {
      backend_->start_receive(channel_);
    }
    // A wait may end early.
    bool woken = false;
    for (int i = 0; i < 5 && !woken && sink_.text.empty(); ++i) {
      turn(kAWhileNs);
      woken = backend_->woken();
    }
    other.join();
    inbox_.disarm();
    EXPECT_EQ(woken, round < 3);
    if (woken) {
      inbox_.acknowledge();
    }
    backend_->send_with_poll(channel_);
    turn();
    EXPECT_EQ(far_gets(), "bytes");
    EXPECT_FALSE(backend_->waits_in_set());
  }
  EXPECT_EQ(sink_.text, "while it waits");
}

TEST_F(IoUringBackendTest, RingThatMovesLeavesTheSet) {
  Watched watched(*backend_);
  enter_the_set(watched);
  std::thread([&] {
    watched.become_readable();
    turn(kAWhileNs);
    turn();
  }).join();
  EXPECT_EQ(watched.found, 21);
  backend_->start_receive(channel_);
  far_sends("after");
  for (int i = 0; i < 5 && sink_.text.empty(); ++i) {
    turn(kAWhileNs);
  }
  EXPECT_EQ(sink_.text, "after");
}

TEST_F(IoUringBackendTest, ForkedChildLeavesTheParentsRingAlone) {
  become_the_rings();
  const pid_t child = ::fork();
  if (child == 0) {
    backend_->abandon_after_fork();
    backend_->detach(channel_);
    near_.reset();
    backend_->close();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  far_sends("still here");
  turn(kAWhileNs);
  EXPECT_EQ(sink_.text, "still here");
}

TEST_F(IoUringBackendTest, ClosingEndsEverythingUnderWay) {
  become_the_rings();
  backend_->want_send_ready(channel_);
  fill();
  turn();
  backend_->close();
  near_.reset();
  std::string rest(1 << 20, '\0');
  ssize_t count = 0;
  while ((count = ::recv(far_.get(), rest.data(), rest.size(), MSG_DONTWAIT)) > 0) {
  }
  EXPECT_EQ(count, 0);
}

// The whole of it, below a stream socket: several callbacks of one turn write, and the engine sends
// it all with its wait.
class IoUringEngineTest : public testing::RingEngineTest {
 protected:
  void SetUp() override {
    RingEngineTest::SetUp();
    if (engine_ == nullptr) {
      return;
    }
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    owner_ = std::make_unique<testing::StreamOwner>(*engine_, UniqueFd(ends[0]));
    far_.reset(ends[1]);
    // From then on its writes may wait for the callbacks that follow.
    for (int i = 0; i < 6; ++i) {
      call_soon([&] { owner_->write("."); });
      ASSERT_EQ(engine_->turn(), 0);
    }
    EXPECT_EQ(far_gets(), "......");
  }
  void TearDown() override {
    owner_.reset();
    RingEngineTest::TearDown();
  }
  [[nodiscard]] std::string far_gets() {
    std::string bytes(1 << 20, '\0');
    const ssize_t count = ::recv(far_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    return bytes.substr(0, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
  }

  std::unique_ptr<testing::StreamOwner> owner_;
  UniqueFd far_;
};

TEST_F(IoUringEngineTest, WritesOfSeveralCallbacksLeaveWithTheNextPoll) {
  std::string before_the_poll = "not looked";
  call_soon([&] { owner_->write("one "); });
  call_soon([&] { owner_->write("two"); });
  call_soon([&] { before_the_poll = far_gets(); });
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  EXPECT_EQ(before_the_poll, "");
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  EXPECT_EQ(far_gets(), "one two");
  EXPECT_EQ(owner_->socket->queued_bytes(), 0U);
}

TEST_F(IoUringEngineTest, CallbackThatIsAloneFindsItsWriteSent) {
  std::string seen;
  call_soon([&] {
    owner_->write("alone");
    seen = far_gets();
  });
  ASSERT_EQ(engine_->turn(), 0);
  EXPECT_EQ(seen, "alone");
}

TEST_F(IoUringEngineTest, LargeWriteGoesOutAtOnceAndBehindWhatWaited) {
  const std::string large(20'000, 'L');
  std::string seen;
  call_soon([&] { owner_->write("small "); });
  call_soon([&] {
    owner_->write(large);
    owner_->socket->flush();
    seen = far_gets();
  });
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  EXPECT_EQ(seen, "small " + large);
}

TEST_F(IoUringEngineTest, WhatTheLastTurnWroteIsSentBeforeRunReturns) {
  call_soon([&] { owner_->write("last words"); });
  call_soon([&] { engine_->stop(); });
  ASSERT_EQ(engine_->run(), 0);
  EXPECT_EQ(far_gets(), "last words");
}

TEST_F(IoUringEngineTest, ClosingSendsFirst) {
  call_soon([&] {
    owner_->write("bye");
    owner_->close();
  });
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  EXPECT_EQ(far_gets(), "bye");
}

TEST_F(IoUringEngineTest, KernelThatIsFullPausesTheWriterAndTakesTheRestLater) {
  const std::string block(1 << 16, 'f');
  std::size_t filled = 0;
  for (IoResult result;
       (result = os::send(owner_->socket->fd(), block.data(), block.size())).ok();) {
    filled += static_cast<std::size_t>(result.value);
  }
  owner_->socket->set_limits(10, 5);
  (void)owner_->take_log();
  call_soon([&] { owner_->write(std::string(1000, 'w')); });
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  std::size_t got = 0;
  for (int i = 0; i < 100 && got < filled + 1000; ++i) {
    got += far_gets().size();
    call_soon([] {});
    ASSERT_EQ(engine_->turn(), 0);
  }
  EXPECT_EQ(got, filled + 1000);
  const Lines log = owner_->take_log();
  EXPECT_EQ(std::count(log.begin(), log.end(), "pause"), 1);
  EXPECT_EQ(std::count(log.begin(), log.end(), "resume"), 1);
}

TEST_F(IoUringEngineTest, FailedSendIsToldToTheOwnerOnce) {
  far_.reset();
  call_soon([&] { owner_->write("to nobody"); });
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  call_soon([] {});
  ASSERT_EQ(engine_->turn(), 0);
  const Lines log = owner_->take_log();
  EXPECT_EQ(std::count_if(log.begin(), log.end(),
                          [](const std::string& line) {
                            return line.find("error") == 0 || line.find("send error") == 0;
                          }),
            1);
}

}  // namespace
}  // namespace cpploop

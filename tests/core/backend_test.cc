#include "core/backend/backend.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <map>
#include <string>

#include "core/backend/choice.h"
#include "core/backend/scripted_backend.h"
#include "core/os/platform.h"
#include "core/sched/wakeup_inbox.h"
#include "tests/core/support.h"

#if CPPLOOP_HAVE_EPOLL
#include "core/backend/io_uring_backend.h"
#endif

// What every backend promises, in one suite over all of them. A world gives a test a backend and
// the other side of what it talks to: the kernel for a real backend, a script for the scripted one.
namespace cpploop {
namespace {

using testing::Lines;
using testing::some_fd;

class KernelWorld {
 public:
  static constexpr bool kWaitsInRealTime = true;

  explicit KernelWorld(BackendChoice choice) : backend_(make_backend(choice, inbox_.fd())) {}

  [[nodiscard]] Backend& backend() { return *backend_; }

  [[nodiscard]] UniqueFd connected() {
    UniqueFd listener = listening();
    os::SocketAddress address;
    EXPECT_TRUE(os::local_address(listener.get(), address).ok());
    far_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(far_.get(), address.get(), address.length), 0);
    os::SocketAddress peer;
    return UniqueFd(static_cast<int>(os::accept(listener.get(), peer).value));
  }
  void far_sends(int, const std::string& bytes) {
    EXPECT_EQ(::send(far_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  void far_closes(int) { far_.reset(); }
  void far_resets(int) {
    const linger at_once{1, 0};
    EXPECT_EQ(::setsockopt(far_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), 0);
    far_.reset();
  }
  void fill(int fd) {
    const std::string block(1 << 20, 'x');
    while (os::send(fd, block.data(), block.size()).ok()) {
    }
  }
  void far_takes_all(int) {
    std::string buffer(1 << 20, '\0');
    while (::recv(far_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT) > 0) {
    }
  }

  [[nodiscard]] UniqueFd listening() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(fd.get(), 16), 0);
    return fd;
  }
  void somebody_connects(int listener) {
    os::SocketAddress address;
    EXPECT_TRUE(os::local_address(listener, address).ok());
    clients_.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(clients_.back().get(), address.get(), address.length), 0);
  }

  [[nodiscard]] UniqueFd connecting() {
    return UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  }
  [[nodiscard]] os::SocketAddress target(int, bool somebody_listens) {
    UniqueFd listener = listening();
    os::SocketAddress address;
    EXPECT_TRUE(os::local_address(listener.get(), address).ok());
    if (somebody_listens) {
      clients_.push_back(std::move(listener));
    }
    return address;
  }

  // A descriptor whose readiness the test turns on and off. It can always be written.
  [[nodiscard]] UniqueFd watchable() {
    testing::SocketPair pair = testing::socket_pair();
    const int fd = pair.near_end.get();
    far_ends_[fd] = std::move(pair.far_end);
    return std::move(pair.near_end);
  }
  void make_readable(int fd) { EXPECT_EQ(::send(far_ends_[fd].get(), "x", 1, MSG_NOSIGNAL), 1); }
  void make_unreadable(int fd) {
    char byte = 0;
    EXPECT_EQ(::recv(fd, &byte, 1, 0), 1);
  }
  [[nodiscard]] UniqueFd regular_file() {
    return UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  }
  void wake() {
    if (inbox_.arm()) {
      inbox_.wake();
    }
  }
  void acknowledge() { inbox_.acknowledge(); }

 private:
  WakeupInbox inbox_;
  std::unique_ptr<Backend> backend_;
  UniqueFd far_;
  std::vector<UniqueFd> clients_;
  std::map<int, UniqueFd> far_ends_;
};

#if CPPLOOP_HAVE_EPOLL

class EpollWorld : public KernelWorld {
 public:
  EpollWorld() : KernelWorld(BackendChoice::epoll) {}
};

class IoUringWorld : public KernelWorld {
 public:
  IoUringWorld() : KernelWorld(BackendChoice::io_uring) {}
};

// With standing receives from the first byte on, which connections otherwise come to by their
// small messages.
class IoUringReceivingWorld : public IoUringWorld {
 public:
  IoUringReceivingWorld() {
    if (auto* ring = dynamic_cast<IoUringBackend*>(&backend()); ring != nullptr) {
      ring->receive_from_the_start(true);
    }
  }
};

#else

class KqueueWorld : public KernelWorld {
 public:
  KqueueWorld() : KernelWorld(BackendChoice::kqueue) {}
};

#endif

class ScriptedWorld {
 public:
  static constexpr bool kWaitsInRealTime = false;

  [[nodiscard]] Backend& backend() { return backend_; }

  [[nodiscard]] UniqueFd connected() { return some_fd(); }
  void far_sends(int fd, const std::string& bytes) { backend_.bring(fd, bytes); }
  void far_closes(int fd) { backend_.bring_end(fd); }
  void far_resets(int fd) { backend_.bring_error(fd, ECONNRESET); }
  void fill(int fd) { backend_.fill(fd); }
  void far_takes_all(int fd) { backend_.make_room(fd); }

  [[nodiscard]] UniqueFd listening() { return some_fd(); }
  void somebody_connects(int listener) { backend_.bring_connection(listener, some_fd().release()); }

  [[nodiscard]] UniqueFd connecting() { return some_fd(); }
  [[nodiscard]] os::SocketAddress target(int fd, bool somebody_listens) {
    backend_.finish_connect_with(fd, somebody_listens ? 0 : ECONNREFUSED);
    return {};
  }

  [[nodiscard]] UniqueFd watchable() { return some_fd(); }
  void make_readable(int fd) { backend_.set_readable(fd, true); }
  void make_unreadable(int fd) { backend_.set_readable(fd, false); }
  [[nodiscard]] UniqueFd regular_file() {
    UniqueFd fd = some_fd();
    backend_.refuse(fd.get(), EPERM);
    return fd;
  }
  void wake() { backend_.wake(); }
  void acknowledge() {}

 private:
  FakeClock clock_;
  ScriptedBackend backend_{&clock_};
};

// A receiver of every kind that writes down what it is told.
class Receiver final : public StreamSink,
                       public AcceptSink,
                       public ConnectSink,
                       public ReadinessSink {
 public:
  void hold() noexcept override { ++holds; }
  void release() noexcept override { --holds; }
  bool owns_descriptor() noexcept override { return owns; }
  ReceiveBuffer receive_buffer() override {
    if (before_receive) {
      before_receive();
    }
    return {buffer.data(), refuses ? 0 : buffer.size()};
  }
  void on_received(IoResult result) override {
    if (result.ok() && result.value > 0) {
      tell("received " + std::string(buffer.data(), static_cast<std::size_t>(result.value)));
    } else if (result.ok()) {
      tell("end");
    } else {
      tell(result.would_block() ? "buffer back" : "error " + std::to_string(result.error));
    }
  }
  void on_send_ready() override { tell("send ready"); }
  bool on_accepted(UniqueFd fd, const os::SocketAddress&) override {
    EXPECT_TRUE(testing::is_open(fd.get()));
    tell("accepted");
    return wants_more;
  }
  void on_accept_error(int error) override { tell("accept error " + std::to_string(error)); }
  void on_connected(int error) override { tell("connected " + std::to_string(error)); }
  void on_readable() override { tell("readable"); }
  void on_writable() override { tell("writable"); }

  Lines log;
  std::array<char, 4096> buffer{};
  std::function<void()> before_receive{};
  std::function<void()> on_any{};
  bool refuses = false;
  bool wants_more = true;
  bool owns = true;
  int holds = 0;

 private:
  void tell(std::string line) {
    EXPECT_EQ(holds, 1) << "every delivery is bracketed";
    log.push_back(std::move(line));
    if (on_any) {
      on_any();
    }
  }
};

template <typename World>
class BackendTest : public ::testing::Test {
 protected:
  using Kind = Channel::Kind;

  void SetUp() override {
#if CPPLOOP_HAVE_EPOLL
    if constexpr (std::is_base_of_v<IoUringWorld, World>) {
      if (const std::string refusal = io_uring_refusal(); !refusal.empty()) {
        GTEST_SKIP() << "no io_uring here, " << refusal;
      }
      ASSERT_STREQ(backend().name(), "io_uring");
    }
#endif
  }

  [[nodiscard]] Backend& backend() { return world_.backend(); }

  // The four receivers share their hold() and release(); the cast picks the right base.
  void attach(Channel& channel, const UniqueFd& fd, Kind kind, Receiver& receiver) {
    switch (kind) {
      case Kind::stream:
        backend().attach(channel, fd.get(), kind, static_cast<StreamSink*>(&receiver));
        break;
      case Kind::accept:
        backend().attach(channel, fd.get(), kind, static_cast<AcceptSink*>(&receiver));
        break;
      case Kind::connect:
        backend().attach(channel, fd.get(), kind, static_cast<ConnectSink*>(&receiver));
        break;
      default:
        backend().attach(channel, fd.get(), kind, static_cast<ReadinessSink*>(&receiver));
        break;
    }
  }
  // Waits a little and queues what happened.
  void poll(std::int64_t timeout_ns = 0) {
    backend().apply_changes();
    ASSERT_TRUE(backend().wait(timeout_ns).ok());
    backend().collect(ready_);
  }
  void dispatch() {
    while (!ready_.empty()) {
      const ReadyEntry entry = ready_.pop();
      ASSERT_EQ(entry.kind, ReadyEntry::Kind::io);
      backend().dispatch(entry.channel, entry.io_events);
    }
  }
  void turn(std::int64_t timeout_ns = 0) {
    poll(timeout_ns);
    dispatch();
  }
  static constexpr std::int64_t kAWhileNs = 5 * kNanosecondsPerSecond;

  World world_;
  ReadyQueue ready_;
};

#if CPPLOOP_HAVE_EPOLL
using Worlds = ::testing::Types<EpollWorld, IoUringWorld, IoUringReceivingWorld, ScriptedWorld>;
constexpr std::array kWorldNames = {"Epoll", "IoUring", "IoUringReceiving", "Scripted"};
#else
using Worlds = ::testing::Types<KqueueWorld, ScriptedWorld>;
constexpr std::array kWorldNames = {"Kqueue", "Scripted"};
#endif

class WorldNames {
 public:
  template <typename World>
  static std::string GetName(int index) {
    return kWorldNames[static_cast<std::size_t>(index)];
  }
};

TYPED_TEST_SUITE(BackendTest, Worlds, WorldNames);

TYPED_TEST(BackendTest, DeliversWhatThePeerSends) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "hello");
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"received hello"}));
  this->turn();
  EXPECT_EQ(receiver.log.size(), 1U);
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, ReadsOnceAPollAndFindsTheRestAtTheNext) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  const std::string bytes(receiver.buffer.size() + 1, 'b');
  this->world_.far_sends(fd.get(), bytes);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log.size(), 1U);
  this->turn(this->kAWhileNs);
  ASSERT_EQ(receiver.log.size(), 2U);
  EXPECT_EQ(receiver.log.back(), "received b");
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, EndOfStreamIsACountOfZeroAndStays) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_closes(fd.get());
  this->turn(this->kAWhileNs);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"end", "end"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, ResetIsAnError) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_resets(fd.get());
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"error " + std::to_string(ECONNRESET)}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, StoppedReceivingDeliversNothingUntilStartedAgain) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->turn();
  this->backend().stop_receive(channel);
  this->world_.far_sends(fd.get(), "late");
  this->turn();
  EXPECT_TRUE(receiver.log.empty());
  this->backend().start_receive(channel);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"received late"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, PausedStreamWhosePeerIsGoneIsQuiet) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->turn();
  this->backend().stop_receive(channel);
  this->world_.far_resets(fd.get());
  this->poll();
  EXPECT_TRUE(this->ready_.empty());
  const std::int64_t before_ns = monotonic_now_ns();
  this->poll(1'000'000);
  EXPECT_TRUE(this->ready_.empty());
  EXPECT_GE(monotonic_now_ns() - before_ns, TypeParam::kWaitsInRealTime ? 1'000'000 : 0)
      << "a hang-up nobody asked about must not spin";
  EXPECT_FALSE(this->backend().has_channels());
  this->backend().start_receive(channel);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log.size(), 1U);
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, EventIsDroppedWhenReceivingStoppedSinceThePoll) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "x");
  this->poll(this->kAWhileNs);
  this->backend().stop_receive(channel);
  this->dispatch();
  EXPECT_TRUE(receiver.log.empty());
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, EventOfBeforeARestartIsDroppedAndComesAgain) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "x");
  this->poll(this->kAWhileNs);
  this->backend().stop_receive(channel);
  this->backend().start_receive(channel);
  this->dispatch();
  EXPECT_TRUE(receiver.log.empty());
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"received x"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, SinkThatRefusesABufferIsNotReadFor) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  receiver.refuses = true;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "kept");
  this->turn(this->kAWhileNs);
  EXPECT_TRUE(receiver.log.empty());
  receiver.refuses = false;
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"received kept"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, SinkThatDetachesWhileMakingRoomGetsItsBufferBack) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "lost");
  receiver.before_receive = [&] { this->backend().detach(channel); };
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"buffer back"}));
}

TYPED_TEST(BackendTest, SendTakesWhatThereIsRoomFor) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  std::array<iovec, 2> parts{iovec{const_cast<char*>("ab"), 2}, iovec{const_cast<char*>("c"), 1}};
  EXPECT_EQ(this->backend().send(channel, parts).value, 3);
  EXPECT_EQ(this->backend().send(channel, std::span(parts).first(1)).value, 2);
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, FullKernelSaysWouldBlockAndLaterSendReady) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->world_.fill(fd.get());
  std::string block(1 << 20, 'x');
  const iovec part{block.data(), block.size()};
  EXPECT_TRUE(this->backend().send(channel, {&part, 1}).would_block());
  this->backend().want_send_ready(channel);
  this->turn();
  EXPECT_TRUE(receiver.log.empty());
  for (int i = 0; i < 1000 && receiver.log.empty(); ++i) {
    this->world_.far_takes_all(fd.get());
    this->turn(1'000'000);
  }
  EXPECT_EQ(receiver.log, (Lines{"send ready"}));
  this->backend().stop_send_ready(channel);
  this->turn();
  EXPECT_EQ(receiver.log.size(), 1U);
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, DetachedChannelGetsNothingThatWasPolledForIt) {
  const UniqueFd fd = this->world_.connected();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::stream, receiver);
  this->backend().start_receive(channel);
  this->world_.far_sends(fd.get(), "x");
  this->poll(this->kAWhileNs);
  this->backend().detach(channel);
  this->backend().detach(channel);
  EXPECT_FALSE(channel.attached());
  this->dispatch();
  EXPECT_TRUE(receiver.log.empty());
}

// One connection's bytes must never reach another: the slot and the number of a dead connection are
// taken by a new one while an event of the dead one is still queued.
TYPED_TEST(BackendTest, EventOfADeadChannelNeverReachesTheNextUserOfItsSlotAndNumber) {
  UniqueFd first = this->world_.connected();
  const int number = first.get();
  Receiver dead;
  Receiver next;
  Channel channel;
  this->attach(channel, first, Channel::Kind::stream, dead);
  const ChannelId old_id = channel.id;
  this->backend().start_receive(channel);
  this->world_.far_sends(number, "for the first");
  this->poll(this->kAWhileNs);
  ASSERT_EQ(this->ready_.size(), 1U);

  this->backend().detach(channel);
  first.reset();
  UniqueFd second = this->world_.connected();
  if (second.get() != number) {
    // The far end, which is of no more use, may have got it.
    this->world_.far_closes(second.get());
    ASSERT_EQ(::dup3(second.get(), number, O_CLOEXEC), number);
    second.reset(number);
  }
  Channel other;
  this->attach(other, second, Channel::Kind::stream, next);
  EXPECT_EQ(other.id.slot, old_id.slot);
  EXPECT_NE(other.id.generation, old_id.generation);
  this->backend().start_receive(other);
  // Even when it looks older than the poll that found the stale event.
  other.readable_since = 0;
  this->dispatch();
  EXPECT_TRUE(dead.log.empty());
  EXPECT_TRUE(next.log.empty());
  this->backend().detach(other);
}

TYPED_TEST(BackendTest, SinkThatDetachesInOneDirectionIsNotToldTheOther) {
  const UniqueFd fd = this->world_.watchable();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  ASSERT_EQ(this->backend().watch(channel, kWantReadable), 0);
  ASSERT_EQ(this->backend().watch(channel, kWantWritable), 0);
  this->world_.make_readable(fd.get());
  receiver.on_any = [&] { this->backend().detach(channel); };
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"readable"}));
}

TYPED_TEST(BackendTest, AcceptsNoMoreThanTheBatchAtOnce) {
  const UniqueFd fd = this->world_.listening();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::accept, receiver);
  this->backend().start_accept(channel, 2);
  for (int i = 0; i < 3; ++i) {
    this->world_.somebody_connects(fd.get());
  }
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log.size(), 2U);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log.size(), 3U);
  this->turn();
  EXPECT_EQ(receiver.log.size(), 3U);
  this->backend().detach(channel);
}

// One that found nobody behind a connection expects single ones, until the next poll shows another.
TYPED_TEST(BackendTest, EveryConnectionIsAcceptedWhetherTheyComeOneByOneOrTogether) {
  const UniqueFd fd = this->world_.listening();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::accept, receiver);
  this->backend().start_accept(channel, 100);
  std::size_t made = 0;
  for (const int together : {1, 1, 1, 4, 1, 2, 1, 1, 3}) {
    for (int i = 0; i < together; ++i) {
      this->world_.somebody_connects(fd.get());
      ++made;
    }
    this->turn(this->kAWhileNs);
    if (this->world_.kWaitsInRealTime) {
      // In this sequence the first of several always comes behind a single one.
      EXPECT_EQ(receiver.log.size(), made - static_cast<std::size_t>(together) + 1);
    }
    if (receiver.log.size() < made) {
      this->turn(this->kAWhileNs);
    }
    EXPECT_EQ(receiver.log.size(), made) << "after two polls all of " << together;
    this->turn();
  }
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, AcceptingStopsWhenTheSinkHasEnough) {
  const UniqueFd fd = this->world_.listening();
  Receiver receiver;
  receiver.wants_more = false;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::accept, receiver);
  this->backend().start_accept(channel, 100);
  this->world_.somebody_connects(fd.get());
  this->world_.somebody_connects(fd.get());
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"accepted"}));
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"accepted", "accepted"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, AcceptingStopsWhenTheListenerIsDetachedInTheMiddle) {
  const UniqueFd fd = this->world_.listening();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::accept, receiver);
  this->backend().start_accept(channel, 100);
  this->world_.somebody_connects(fd.get());
  this->world_.somebody_connects(fd.get());
  receiver.on_any = [&] { this->backend().detach(channel); };
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"accepted"}));
}

TYPED_TEST(BackendTest, ConnectingReportsSuccessOnce) {
  const UniqueFd fd = this->world_.connecting();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::connect, receiver);
  const int error = this->backend().start_connect(channel, this->world_.target(fd.get(), true));
  if (error == EINPROGRESS) {
    this->turn(this->kAWhileNs);
    EXPECT_EQ(receiver.log, (Lines{"connected 0"}));
    this->turn();
    EXPECT_EQ(receiver.log.size(), 1U);
  } else {
    EXPECT_EQ(error, 0);
  }
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, ConnectingToNobodyReportsTheRefusal) {
  const UniqueFd fd = this->world_.connecting();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::connect, receiver);
  const int error = this->backend().start_connect(channel, this->world_.target(fd.get(), false));
  if (error == EINPROGRESS) {
    this->turn(this->kAWhileNs);
    EXPECT_EQ(receiver.log, (Lines{"connected " + std::to_string(ECONNREFUSED)}));
  } else {
    EXPECT_EQ(error, ECONNREFUSED);
  }
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, WatcherIsToldOfEachDirectionItAskedFor) {
  const UniqueFd fd = this->world_.watchable();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  ASSERT_EQ(this->backend().watch(channel, kWantReadable), 0);
  this->turn();
  EXPECT_TRUE(receiver.log.empty());
  this->world_.make_readable(fd.get());
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"readable"}));
  ASSERT_EQ(this->backend().watch(channel, kWantWritable), 0);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log, (Lines{"readable", "readable", "writable"}));
  this->backend().unwatch(channel, kWantReadable);
  this->turn(this->kAWhileNs);
  EXPECT_EQ(receiver.log.back(), "writable");
  EXPECT_EQ(receiver.log.size(), 4U);
  this->backend().unwatch(channel, kWantWritable);
  this->turn();
  EXPECT_EQ(receiver.log.size(), 4U);
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, ReadinessIsReportedWhileItLasts) {
  const UniqueFd fd = this->world_.watchable();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  ASSERT_EQ(this->backend().watch(channel, kWantReadable), 0);
  this->world_.make_readable(fd.get());
  this->turn(this->kAWhileNs);
  this->turn(this->kAWhileNs);
  this->world_.make_unreadable(fd.get());
  this->turn();
  EXPECT_EQ(receiver.log, (Lines{"readable", "readable"}));
  this->backend().detach(channel);
}

TYPED_TEST(BackendTest, RegularFileIsRefusedAndNothingIsLeftBehind) {
  const UniqueFd fd = this->world_.regular_file();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  EXPECT_EQ(this->backend().watch(channel, kWantReadable), EPERM);
  EXPECT_EQ(channel.wanted, 0);
  EXPECT_FALSE(this->backend().has_channels());
  this->backend().detach(channel);
  EXPECT_EQ(this->backend().attached_count(), 0U);
}

TYPED_TEST(BackendTest, WakeUpIsReportedAndIsNoChannel) {
  EXPECT_FALSE(this->backend().has_channels());
  this->world_.wake();
  this->poll(this->kAWhileNs);
  EXPECT_TRUE(this->backend().woken());
  EXPECT_TRUE(this->ready_.empty());
  this->world_.acknowledge();
  this->poll();
  EXPECT_FALSE(this->backend().woken());
}

TYPED_TEST(BackendTest, WaitThatRunsOutFindsNothing) {
  EXPECT_EQ(this->backend().wait(0).value, 0);
  EXPECT_EQ(this->backend().wait(1'000'000).value, 0);
}

TYPED_TEST(BackendTest, CountsWhatIsAttachedAndWhatIsWatched) {
  const UniqueFd fd = this->world_.watchable();
  const UniqueFd other = this->world_.watchable();
  Receiver receiver;
  Channel first;
  Channel second;
  this->attach(first, fd, Channel::Kind::readiness, receiver);
  this->attach(second, other, Channel::Kind::readiness, receiver);
  EXPECT_NE(first.id.slot, second.id.slot);
  EXPECT_EQ(this->backend().attached_count(), 2U);
  EXPECT_FALSE(this->backend().has_channels());
  ASSERT_EQ(this->backend().watch(first, kWantReadable), 0);
  ASSERT_EQ(this->backend().watch(first, kWantWritable), 0);
  EXPECT_TRUE(this->backend().has_channels());
  this->backend().unwatch(first, kWantReadable);
  EXPECT_TRUE(this->backend().has_channels());
  this->backend().detach(first);
  EXPECT_FALSE(this->backend().has_channels());
  this->backend().detach(second);
  EXPECT_EQ(this->backend().attached_count(), 0U);
}

TYPED_TEST(BackendTest, AfterAForkDetachingLeavesTheKernelsSetAlone) {
  const UniqueFd fd = this->world_.watchable();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  ASSERT_EQ(this->backend().watch(channel, kWantReadable), 0);
  this->world_.make_readable(fd.get());
  this->backend().abandon_after_fork();
  this->backend().detach(channel);
#if CPPLOOP_HAVE_EPOLL
  // The set is the parent's too, and the parent still wants to know.
  if (std::is_same_v<TypeParam, EpollWorld>) {
    EXPECT_EQ(this->backend().wait(0).value, 1);
    this->backend().collect(this->ready_);
    this->dispatch();
    EXPECT_TRUE(receiver.log.empty());
  }
#endif
}

TYPED_TEST(BackendTest, ChannelsMayBeDetachedAfterTheBackendIsClosed) {
  const UniqueFd fd = this->world_.watchable();
  Receiver receiver;
  Channel channel;
  this->attach(channel, fd, Channel::Kind::readiness, receiver);
  ASSERT_EQ(this->backend().watch(channel, kWantReadable), 0);
  this->backend().close();
  this->backend().detach(channel);
  this->backend().close();
  EXPECT_EQ(this->backend().attached_count(), 0U);
}

// What only the kernel can show.

struct Pipe {
  Pipe() {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::pipe(fds), 0);
    reading.reset(fds[0]);
    writing.reset(fds[1]);
  }
  void make_readable() { EXPECT_EQ(::write(writing.get(), "x", 1), 1); }

  UniqueFd reading;
  UniqueFd writing;
};

TEST(KernelBackend, ClosedAndReusedNumberIsWatchedAnew) {
  WakeupInbox inbox;
  const auto made = make_backend(BackendChoice::automatic, inbox.fd());
  Backend& backend = *made;
  Receiver receiver;
  Channel channel;
  Pipe first;
  const int number = first.reading.get();
  backend.attach(channel, number, Channel::Kind::readiness, static_cast<ReadinessSink*>(&receiver));
  ASSERT_EQ(backend.watch(channel, kWantReadable), 0);
  first.reading.reset();  // Behind the backend's back; the kernel forgets the registration.
  Pipe second;
  ASSERT_EQ(second.reading.get(), number);
  ASSERT_EQ(backend.watch(channel, kWantReadable), 0);
  second.make_readable();
  ASSERT_EQ(backend.wait(0).value, 1);
  ReadyQueue ready;
  backend.collect(ready);
  const ReadyEntry entry = ready.pop();
  backend.dispatch(entry.channel, entry.io_events);
  EXPECT_EQ(receiver.log, (Lines{"readable"}));
  backend.detach(channel);
}

TEST(KernelBackend, StreamThatCannotBeWatchedIsReportedInsteadOfStalling) {
  WakeupInbox inbox;
  const auto made = make_backend(BackendChoice::automatic, inbox.fd());
  Backend& backend = *made;
  Receiver receiver;
  Channel channel;
  // A regular file is not a socket. epoll refuses it, to kqueue it is ready.
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  backend.attach(channel, file.get(), Channel::Kind::stream, static_cast<StreamSink*>(&receiver));
  backend.start_receive(channel);
  for (int i = 0; i < 2; ++i) {
    backend.apply_changes();
    const IoResult waited = backend.wait(-1);
    // Interrupted, where the kernel is still taking down the ring of another test.
    ASSERT_TRUE(waited.ok() || waited.error == EINTR)
        << "a refused channel must not let the loop sleep";
    ReadyQueue ready;
    backend.collect(ready);
    ASSERT_EQ(ready.size(), 1U);
    const ReadyEntry entry = ready.pop();
    backend.dispatch(entry.channel, entry.io_events);
  }
  EXPECT_EQ(receiver.log, Lines(2, "error " + std::to_string(ENOTSOCK)));
  backend.detach(channel);
}

TEST(KernelBackend, DetachingRemovesARegistrationThatACopyOfTheDescriptorKeepsAlive) {
  WakeupInbox inbox;
  const auto made = make_backend(BackendChoice::automatic, inbox.fd());
  Backend& backend = *made;
  Receiver receiver;
  Channel channel;
  Pipe pipe;
  const UniqueFd copy(::fcntl(pipe.reading.get(), F_DUPFD_CLOEXEC, 0));  // As a child has one.
  backend.attach(channel, pipe.reading.get(), Channel::Kind::readiness,
                 static_cast<ReadinessSink*>(&receiver));
  ASSERT_EQ(backend.watch(channel, kWantReadable), 0);
  backend.detach(channel);
  pipe.reading.reset();
  pipe.make_readable();
  EXPECT_EQ(backend.wait(0).value, 0);
}

TEST(KernelBackend, DetachingLeavesTheNextUserOfTheNumberRegistered) {
  WakeupInbox inbox;
  const auto made = make_backend(BackendChoice::automatic, inbox.fd());
  Backend& backend = *made;
  Receiver receiver;
  Channel first;
  Pipe pipe;
  const int number = pipe.reading.get();
  backend.attach(first, number, Channel::Kind::readiness, static_cast<ReadinessSink*>(&receiver));
  ASSERT_EQ(backend.watch(first, kWantReadable), 0);
  pipe.reading.reset();  // Behind the backend's back.
  Pipe reused;
  ASSERT_EQ(reused.reading.get(), number);
  Channel second;
  backend.attach(second, number, Channel::Kind::readiness, static_cast<ReadinessSink*>(&receiver));
  ASSERT_EQ(backend.watch(second, kWantReadable), 0);
  backend.detach(first);
  reused.make_readable();
  EXPECT_EQ(backend.wait(0).value, 1);
  ReadyQueue ready;
  backend.collect(ready);
  EXPECT_EQ(ready.size(), 1U);
  backend.detach(second);
  EXPECT_EQ(backend.wait(0).value, 0);
}

class RestingReader : public ::testing::TestWithParam<BackendChoice> {
 protected:
  RestingReader() {
    backend_->attach(channel_, pipe_.reading.get(), Channel::Kind::readiness,
                     static_cast<ReadinessSink*>(&receiver_));
    EXPECT_EQ(backend_->watch_after_read(channel_), 0);
  }
  ~RestingReader() override { backend_->detach(channel_); }

  // How many events a look into the kernel finds; they are delivered.
  std::size_t turn() {
    backend_->apply_changes();
    EXPECT_TRUE(backend_->wait(0).ok());
    ReadyQueue ready;
    backend_->collect(ready);
    const std::size_t found = ready.size();
    while (!ready.empty()) {
      const ReadyEntry entry = ready.pop();
      backend_->dispatch(entry.channel, entry.io_events);
    }
    return found;
  }
  void read_all() {
    std::array<char, 100> bytes{};
    EXPECT_GT(::read(pipe_.reading.get(), bytes.data(), bytes.size()), 0);
  }

  WakeupInbox inbox_;
  std::unique_ptr<Backend> backend_ = make_backend(GetParam(), inbox_.fd());
  Pipe pipe_;
  Receiver receiver_;
  Channel channel_;
};

INSTANTIATE_TEST_SUITE_P(Backends, RestingReader,
                         ::testing::Values(BackendChoice::automatic, BackendChoice::io_uring),
                         [](const auto& tested) {
                           return tested.param == BackendChoice::io_uring ? "io_uring"
                                                                          : "automatic";
                         });

TEST_P(RestingReader, IsToldOfWhatCameAfterItsRead) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(turn(), 0U);
    pipe_.make_readable();
    turn();
    EXPECT_EQ(receiver_.log, Lines(static_cast<std::size_t>(i) + 1, "readable"));
    read_all();
    backend_->rest(channel_);
    EXPECT_EQ(backend_->watch_after_read(channel_), 0);
  }
}

TEST_P(RestingReader, IsLeftInPeaceByWhatComesMeanwhile) {
  backend_->rest(channel_);
  EXPECT_FALSE(backend_->has_channels());
  pipe_.make_readable();
  turn();
  EXPECT_EQ(turn(), 0U) << "the first event took the registration away";
  EXPECT_EQ(receiver_.log, Lines());
  read_all();
  ASSERT_EQ(backend_->watch_after_read(channel_), 0);
  pipe_.make_readable();
  EXPECT_EQ(turn(), 1U);
  EXPECT_EQ(receiver_.log, (Lines{"readable"}));
}

TEST_P(RestingReader, MayBecomeAWatcherThatIsToldWhileItLasts) {
  backend_->rest(channel_);
  pipe_.make_readable();
  ASSERT_EQ(backend_->watch(channel_, kWantReadable), 0);
  turn();
  turn();
  EXPECT_EQ(receiver_.log, Lines(2, "readable"));
}

TEST_P(RestingReader, IsForgottenWithItsChannel) {
  backend_->rest(channel_);
  const UniqueFd copy(::fcntl(pipe_.reading.get(), F_DUPFD_CLOEXEC, 0));
  backend_->detach(channel_);
  pipe_.reading.reset();
  pipe_.make_readable();
  EXPECT_EQ(turn(), 0U);
}

TEST(KernelBackend, OwnerThatLostItsNumberDoesNotTakeTheNextUsersRegistration) {
  WakeupInbox inbox;
  const auto made = make_backend(BackendChoice::automatic, inbox.fd());
  Backend& backend = *made;
  Receiver loser;
  Receiver receiver;
  Channel first;
  Pipe pipe;
  const int number = pipe.reading.get();
  backend.attach(first, number, Channel::Kind::accept, static_cast<AcceptSink*>(&loser));
  backend.start_accept(first, 1);  // Told to the kernel with the next poll.
  pipe.reading.reset();            // Behind the backend's back.
  loser.owns = false;
  Pipe reused;
  ASSERT_EQ(reused.reading.get(), number);
  Channel second;
  backend.attach(second, number, Channel::Kind::readiness, static_cast<ReadinessSink*>(&receiver));
  ASSERT_EQ(backend.watch(second, kWantReadable), 0);
  backend.apply_changes();
  reused.make_readable();
  ASSERT_TRUE(backend.wait(0).ok());
  ReadyQueue ready;
  backend.collect(ready);
  while (!ready.empty()) {
    const ReadyEntry entry = ready.pop();
    backend.dispatch(entry.channel, entry.io_events);
  }
  EXPECT_EQ(receiver.log, (Lines{"readable"}));
  EXPECT_EQ(loser.log, (Lines{"accept error " + std::to_string(EBADF)}));
  backend.detach(first);
  EXPECT_EQ(backend.wait(0).value, 1);
  backend.detach(second);
}

TEST(KernelBackend, WakeupDescriptorThatIsNoneCannotBeWatched) {
  EXPECT_THROW((void)make_backend(BackendChoice::automatic, -1), std::system_error);
}

}  // namespace
}  // namespace cpploop

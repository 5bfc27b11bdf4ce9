#include "core/net/datagram_socket.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::Lines;
using testing::ScriptedEngine;
using testing::some_fd;
using testing::TestHost;

constexpr std::size_t kHeader = 8;

// The owner of a datagram socket: writes down what it is told, and does what a test hangs into it.
class DatagramOwner final : public DatagramEvents {
 public:
  DatagramOwner(Engine& engine, UniqueFd fd,
                DatagramSocket::Sizes sizes = DatagramSocket::Sizes::fit_a_slot,
                std::size_t header = kHeader)
      : socket(std::make_unique<DatagramSocket>(engine, std::move(fd), sizes, header, *this)) {}
  ~DatagramOwner() {
    socket.reset();
    EXPECT_EQ(holds, 0);
    EXPECT_EQ(owners, 0);
  }

  // As the binding's sendto().
  void send(const std::string& bytes, bool addressed = false) {
    if (socket->sends_at_once()) {
      const IoResult result = socket->send(bytes.data(), bytes.size(), nullptr);
      if (!result.would_block()) {
        if (!result.ok()) {
          on_send_error(result.error);
        }
        return;
      }
      socket->wait_for_kernel();
    }
    auto* owner = new std::string(bytes);
    ++owners;
    socket->queue({owner->data(), owner->size(), owner, addressed});
    socket->maybe_pause_writing();
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
  void release() noexcept override { --holds; }
  void on_datagram(const Datagram& datagram) override {
    tell("datagram " + std::string(datagram.data, datagram.size), on_data);
  }
  void on_receive_error(int error) override {
    tell("receive error " + std::to_string(error), on_error);
  }
  void on_send_error(int error) override { tell("send error " + std::to_string(error), on_error); }
  DatagramSent send_addressed(QueuedDatagram::Owner owner) override {
    const std::string bytes = *static_cast<std::string*>(owner);
    tell("addressed " + bytes, on_addressed);
    return addressed_outcome;
  }
  void on_pause_writing() override { tell("pause", on_pause); }
  void on_resume_writing() override { tell("resume", on_resume); }
  void on_closed_after_flush() override { log.push_back("closed"); }
  void drop_owner(QueuedDatagram::Owner owner) noexcept override {
    --owners;
    delete static_cast<std::string*>(owner);
  }

  std::unique_ptr<DatagramSocket> socket;
  Lines log;
  int holds = 0;
  int owners = 0;
  DatagramSent addressed_outcome = DatagramSent::done;
  std::function<void()> on_data{};
  std::function<void()> on_error{};
  std::function<void()> on_addressed{};
  std::function<void()> on_pause{};
  std::function<void()> on_resume{};

 private:
  void tell(std::string line, const std::function<void()>& hook) {
    log.push_back(std::move(line));
    if (hook) {
      const auto copy = hook;
      copy();
    }
  }
};

class DatagramSocketTest : public ::testing::Test {
 protected:
  [[nodiscard]] ScriptedBackend& backend() { return *loop_.backend; }
  [[nodiscard]] DatagramSocket& socket() { return *owner_.socket; }
  [[nodiscard]] Lines sent() { return backend().sent_datagrams(fd_); }
  void bring(const Lines& texts) {
    for (const std::string& text : texts) {
      backend().bring_datagram(fd_, text);
    }
  }
  void drain() {
    backend().make_room(fd_);
    loop_.turn();
  }

  ScriptedEngine loop_;
  DatagramOwner owner_{loop_.engine, some_fd()};
  int fd_ = owner_.socket->fd();
};

// Receiving.

TEST_F(DatagramSocketTest, ABatchComesInOrderEmptyOnesToo) {
  bring({"a", "", "c"});
  socket().start_reading();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "datagram ", "datagram c"}));
}

TEST_F(DatagramSocketTest, ADeliveryIsBounded) {
  for (int i = 0; i < 20; ++i) {
    backend().bring_datagram(fd_, "x");
  }
  socket().start_reading();
  loop_.turn();
  EXPECT_EQ(owner_.take_log().size(), os::DatagramBatch::kMessages);
  loop_.turn();
  EXPECT_EQ(owner_.log.size(), 20U - os::DatagramBatch::kMessages);
}

TEST_F(DatagramSocketTest, AnErrorIsToldAndTheSocketGoesOn) {
  backend().bring_datagram(fd_, "before");
  backend().bring_error(fd_, ECONNREFUSED);
  backend().bring_datagram(fd_, "after");
  socket().start_reading();
  loop_.turn();
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram before", "receive error 111", "datagram after"}));
}

TEST_F(DatagramSocketTest, NothingOfABatchComesAfterClose) {
  bring({"a", "b", "c"});
  owner_.on_data = [&] { owner_.close(); };
  socket().start_reading();
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "lost is due"}));
}

TEST_F(DatagramSocketTest, NothingOfABatchComesAfterAbort) {
  bring({"a", "b", "c"});
  owner_.on_data = [&] { owner_.abort(); };
  socket().start_reading();
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "lost is due"}));
}

TEST_F(DatagramSocketTest, WhatAPauseInterruptsComesAfterTheResumeAndInOrder) {
  bring({"a", "b", "c"});
  owner_.on_data = [&] { EXPECT_TRUE(socket().pause_reading()); };
  socket().start_reading();
  loop_.turn();
  EXPECT_EQ(owner_.take_log(), (Lines{"datagram a"}));
  EXPECT_FALSE(socket().receives());
  bring({"d"});
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{}));
  owner_.on_data = {};
  EXPECT_TRUE(socket().resume_reading());
  EXPECT_EQ(owner_.log, (Lines{}));  // Not from within the call.
  loop_.turn();
  EXPECT_EQ(owner_.take_log(), (Lines{"datagram b", "datagram c"}));
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram d"}));
}

TEST_F(DatagramSocketTest, PausingAtEachDatagramDeliversOneAtEachResume) {
  bring({"a", "b", "c"});
  owner_.on_data = [&] { EXPECT_TRUE(socket().pause_reading()); };
  socket().start_reading();
  for (const char* expected : {"datagram a", "datagram b", "datagram c"}) {
    loop_.turn();
    loop_.turn();
    EXPECT_EQ(owner_.take_log(), (Lines{expected}));
    EXPECT_TRUE(socket().resume_reading());
  }
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{}));
  EXPECT_TRUE(socket().receives());
}

TEST_F(DatagramSocketTest, PausingAndResumingWithinADatagramChangesNothing) {
  bring({"a", "b", "c"});
  owner_.on_data = [&] {
    EXPECT_TRUE(socket().pause_reading());
    EXPECT_TRUE(socket().resume_reading());
  };
  socket().start_reading();
  loop_.turn();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "datagram b", "datagram c"}));
}

TEST_F(DatagramSocketTest, WhatAnExceptionInterruptsComesInTheNextRun) {
  bring({"a", "b"});
  owner_.on_data = [&] { loop_.engine.interrupt(); };
  socket().start_reading();
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(owner_.take_log(), (Lines{"datagram a"}));
  owner_.on_data = {};
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram b"}));
}

TEST_F(DatagramSocketTest, AfterStopTheRestWaitsForTheNextRun) {
  bring({"a", "b"});
  owner_.on_data = [&] { loop_.engine.stop(); };
  socket().start_reading();
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(owner_.take_log(), (Lines{"datagram a"}));
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(owner_.log, (Lines{"datagram b"}));
}

TEST_F(DatagramSocketTest, WhatIsHeldComesWithTheNextTurnsEvents) {
  bring({"a", "b"});
  owner_.on_data = [&] { loop_.engine.stop(); };
  socket().start_reading();
  ASSERT_EQ(loop_.engine.run(), 0);
  owner_.on_data = {};
  loop_.call_soon([&] { owner_.log.emplace_back("scheduled before"); });
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "scheduled before", "datagram b"}));
}

TEST_F(DatagramSocketTest, WhatIsHeldWaitsForTheTurnAfterReadingWasResumed) {
  bring({"a", "b"});
  owner_.on_data = [&] { loop_.engine.stop(); };
  socket().start_reading();
  ASSERT_EQ(loop_.engine.run(), 0);
  owner_.on_data = {};
  loop_.call_soon([&] {
    EXPECT_TRUE(socket().pause_reading());
    EXPECT_TRUE(socket().resume_reading());
  });
  loop_.turn();
  EXPECT_EQ(owner_.take_log(), (Lines{"datagram a"})) << "the event was of the registration before";
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram b"}));
}

TEST_F(DatagramSocketTest, WhatIsHeldWhenTheLoopClosesIsDropped) {
  bring({"a", "b"});
  owner_.on_data = [&] { loop_.engine.interrupt(); };
  socket().start_reading();
  ASSERT_EQ(loop_.engine.run(), 0);
  EXPECT_EQ(owner_.holds, 1);
  loop_.engine.close();
  EXPECT_EQ(owner_.holds, 0);
  EXPECT_EQ(owner_.log, (Lines{"datagram a"}));
}

TEST_F(DatagramSocketTest, WhatIsHeldIsForgottenByClose) {
  bring({"a", "b"});
  owner_.on_data = [&] { EXPECT_TRUE(socket().pause_reading()); };
  socket().start_reading();
  loop_.turn();
  owner_.close();
  EXPECT_FALSE(socket().resume_reading());
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"datagram a", "lost is due"}));
}

TEST_F(DatagramSocketTest, PausedWithNothingToSendIsUnknownToTheKernel) {
  socket().start_reading();
  loop_.turn();
  EXPECT_EQ(backend().told(fd_), kWantReadable);
  EXPECT_TRUE(socket().pause_reading());
  EXPECT_FALSE(socket().pause_reading());
  backend().apply_changes();  // As before the next wait.
  EXPECT_EQ(backend().told(fd_), 0);
}

// Sending.

TEST_F(DatagramSocketTest, EachDatagramGoesOutAtOnceAndWhole) {
  loop_.in_callback([&] {
    owner_.send("a");
    owner_.send("");
    owner_.send("c");
    EXPECT_EQ(sent(), (Lines{"a", "", "c"}));
  });
  EXPECT_EQ(socket().queued_size(), 0U);
}

TEST_F(DatagramSocketTest, WhatTheKernelHasNoRoomForWaitsInOrder) {
  backend().fill(fd_);
  owner_.send("one");
  owner_.send("");
  owner_.send("three");
  EXPECT_EQ(socket().queued_size(), 3U + 0U + 5U + 3U * kHeader);
  EXPECT_TRUE(socket().waits_for_kernel());
  EXPECT_EQ(sent(), (Lines{}));
  drain();
  EXPECT_EQ(sent(), (Lines{"one", "", "three"}));
  EXPECT_EQ(socket().queued_size(), 0U);
  EXPECT_FALSE(socket().waits_for_kernel());
}

TEST_F(DatagramSocketTest, AFullKernelInTheMiddleOfTheQueueKeepsTheRest) {
  backend().fill(fd_);
  owner_.send("a");
  owner_.send("b");
  backend().limit_send(fd_, 1);
  backend().fail_send(fd_, EAGAIN);
  drain();
  EXPECT_EQ(sent(), (Lines{"a"}));
  EXPECT_EQ(socket().queued_size(), 9U);
  owner_.send("c");
  EXPECT_EQ(socket().queued_size(), 18U);
  drain();
  EXPECT_EQ(sent(), (Lines{"a", "b", "c"}));
}

TEST_F(DatagramSocketTest, AnErrorCostsItsDatagramAndTheNextWaitsForATurn) {
  backend().fill(fd_);
  for (const char* text : {"a", "b", "c"}) {
    owner_.send(text);
  }
  backend().limit_send(fd_, 1);
  backend().fail_send(fd_, EMSGSIZE);
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"send error 90"}));
  EXPECT_EQ(sent(), (Lines{"a"}));
  loop_.turn();
  EXPECT_EQ(sent(), (Lines{"a", "c"}));
  EXPECT_EQ(owner_.log, (Lines{}));
}

TEST_F(DatagramSocketTest, ErrorsOfADirectSendAreTheCallers) {
  backend().fail_send(fd_, ECONNREFUSED);
  backend().fail_send(fd_, EPERM);
  owner_.send("a");
  owner_.send("b");
  owner_.send("c");
  EXPECT_EQ(owner_.log, (Lines{"send error 111", "send error 1"}));
  EXPECT_EQ(sent(), (Lines{"c"}));
}

TEST_F(DatagramSocketTest, WatermarksPauseAndResume) {
  socket().set_limits(30, 10);
  backend().fill(fd_);
  owner_.send("0123456789");
  EXPECT_EQ(owner_.log, (Lines{}));  // 18
  owner_.send("0123456789");
  EXPECT_EQ(owner_.take_log(), (Lines{"pause"}));  // 36
  owner_.send("0123456789");
  EXPECT_EQ(owner_.take_log(), (Lines{}));  // Told once.
  backend().limit_send(fd_, 10);
  backend().fail_send(fd_, EAGAIN);
  drain();
  EXPECT_EQ(owner_.log, (Lines{}));
  drain();
  EXPECT_EQ(owner_.log, (Lines{"resume"}));
}

TEST_F(DatagramSocketTest, TheOwnerSaysWhatADatagramCounts) {
  DatagramOwner other{loop_.engine, some_fd(), DatagramSocket::Sizes::any, 0};
  backend().fill(other.socket->fd());
  other.send("abc");
  EXPECT_EQ(other.socket->queued_size(), 3U);
  backend().make_room(other.socket->fd());
  loop_.turn();
  EXPECT_EQ(other.socket->queued_size(), 0U);
}

TEST_F(DatagramSocketTest, AddressedDatagramsAreTheOwnersToSend) {
  backend().fill(fd_);
  owner_.send("a", true);
  owner_.send("b", true);
  owner_.addressed_outcome = DatagramSent::full;
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"addressed a"}));
  EXPECT_EQ(socket().queued_size(), 18U);
  owner_.addressed_outcome = DatagramSent::done;
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"addressed a", "addressed b"}));
  EXPECT_EQ(socket().queued_size(), 0U);
}

TEST_F(DatagramSocketTest, AnAddressThatAbortsTheSocketLeavesNothing) {
  backend().fill(fd_);
  owner_.send("a", true);
  owner_.send("b", true);
  owner_.on_addressed = [&] { owner_.abort(); };
  owner_.addressed_outcome = DatagramSent::full;
  drain();
  EXPECT_EQ(owner_.log, (Lines{"addressed a", "lost is due"}));
  EXPECT_EQ(owner_.owners, 0);
}

TEST_F(DatagramSocketTest, SendingFromResumeWritingComesAfterWhatWasQueued) {
  socket().set_limits(5, 0);
  backend().fill(fd_);
  owner_.send("first");
  owner_.on_resume = [&] { owner_.send("second"); };
  drain();
  EXPECT_EQ(sent(), (Lines{"first", "second"}));
}

// Closing.

TEST_F(DatagramSocketTest, CloseSendsWhatIsQueuedFirst) {
  backend().fill(fd_);
  owner_.send("last");
  owner_.close();
  EXPECT_TRUE(socket().is_closing());
  EXPECT_EQ(owner_.log, (Lines{}));
  drain();
  EXPECT_EQ(sent(), (Lines{"last"}));
  EXPECT_EQ(owner_.log, (Lines{"closed"}));
  EXPECT_EQ(socket().lost_count(), 1U);
}

TEST_F(DatagramSocketTest, AnErrorAtTheEndOfAClosingQueueStillClosesIt) {
  backend().fill(fd_);
  owner_.send("last");
  owner_.close();
  backend().fail_send(fd_, ECONNREFUSED);
  drain();
  EXPECT_EQ(owner_.take_log(), (Lines{"send error 111"}));
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"closed"}));
}

TEST_F(DatagramSocketTest, AbortDropsTheQueue) {
  backend().fill(fd_);
  owner_.send("never");
  owner_.close();
  owner_.abort();
  owner_.abort();
  drain();
  EXPECT_EQ(sent(), (Lines{}));
  EXPECT_EQ(owner_.log, (Lines{"lost is due"}));
  EXPECT_EQ(socket().queued_size(), 0U);
}

TEST_F(DatagramSocketTest, ClosingFromResumeWritingIsToldOnce) {
  socket().set_limits(1, 0);
  backend().fill(fd_);
  owner_.send("x");
  owner_.on_resume = [&] { owner_.close(); };
  drain();
  loop_.turn();
  EXPECT_EQ(owner_.log, (Lines{"pause", "resume", "lost is due"}));
}

// The queue itself.

TEST(DatagramQueueTest, KeepsItsOrderThroughPuttingBackAndGaps) {
  DatagramQueue queue;
  std::vector<std::size_t> out;
  std::size_t next = 0;
  for (int round = 0; round < 300; ++round) {
    for (int i = 0; i < 3; ++i) {
      queue.push_back({nullptr, next++, nullptr, false});
    }
    const QueuedDatagram front = queue.pop_front();
    queue.push_front(front);
    out.push_back(queue.pop_front().size);
    out.push_back(queue.pop_front().size);
  }
  while (!queue.empty()) {
    out.push_back(queue.pop_front().size);
  }
  ASSERT_EQ(out.size(), next);
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], i);
  }
}

TEST(DatagramQueueTest, TheLastOneCanBePutBack) {
  DatagramQueue queue;
  queue.push_back({nullptr, 1, nullptr, false});
  const QueuedDatagram only = queue.pop_front();
  EXPECT_TRUE(queue.empty());
  queue.push_front(only);
  EXPECT_EQ(queue.count(), 1U);
  EXPECT_EQ(queue.pop_front().size, 1U);
}

// The kernel's own sockets, in both ways of receiving.

class ForcedReceiveMode {
 public:
  explicit ForcedReceiveMode(os::ReceiveMode mode) : before_(os::receive_mode()) {
    os::force_receive_mode(mode);
  }
  ~ForcedReceiveMode() { os::force_receive_mode(before_); }
  ForcedReceiveMode(const ForcedReceiveMode&) = delete;
  ForcedReceiveMode& operator=(const ForcedReceiveMode&) = delete;

 private:
  os::ReceiveMode before_;
};

[[nodiscard]] UniqueFd udp_socket(os::SocketAddress& address) {
  UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  EXPECT_TRUE(os::local_address(fd.get(), address).ok());
  return fd;
}

class DatagramKernelTest : public ::testing::TestWithParam<os::ReceiveMode> {
 protected:
  void turn() {
    Callback();
    ASSERT_EQ(engine_.turn(), 0);
  }
  void Callback() {
    engine_.push_ready(ReadyEntry::of_token(host_.make([] {})));
  }

  ForcedReceiveMode mode_{GetParam()};
  TestHost host_;
  Engine engine_{host_};
};

INSTANTIATE_TEST_SUITE_P(Modes, DatagramKernelTest,
                         ::testing::Values(os::ReceiveMode::batches, os::ReceiveMode::one_by_one),
                         [](const auto& tested) {
                           return tested.param == os::ReceiveMode::batches ? "batches"
                                                                           : "one_by_one";
                         });

TEST_P(DatagramKernelTest, DatagramsOfEverySizeComeWholeAndInOrder) {
  os::SocketAddress here;
  os::SocketAddress there;
  UniqueFd far = udp_socket(there);
  DatagramOwner owner(engine_, udp_socket(here));
  owner.socket->start_reading();
  for (const std::size_t size : {0UL, 1UL, 1500UL, 65507UL, 3UL}) {
    const std::string bytes(size, static_cast<char>('a' + size % 26));
    ASSERT_TRUE(os::send_datagram(far.get(), bytes.data(), bytes.size(), &here).ok());
    turn();
    EXPECT_EQ(owner.take_log(), (Lines{"datagram " + bytes}));
  }
  engine_.close();
}

TEST_P(DatagramKernelTest, ABatchIsBoundedAndTheRestComesNext) {
  os::SocketAddress here;
  os::SocketAddress there;
  UniqueFd far = udp_socket(there);
  DatagramOwner owner(engine_, udp_socket(here));
  for (int i = 0; i < 20; ++i) {
    const std::string bytes = std::to_string(i);
    ASSERT_TRUE(os::send_datagram(far.get(), bytes.data(), bytes.size(), &here).ok());
  }
  owner.socket->start_reading();
  turn();
  EXPECT_EQ(owner.log.size(), os::DatagramBatch::kMessages);
  turn();
  ASSERT_EQ(owner.log.size(), 20U);
  EXPECT_EQ(owner.log.front(), "datagram 0");
  EXPECT_EQ(owner.log.back(), "datagram 19");
  engine_.close();
}

TEST_P(DatagramKernelTest, ARefusalIsToldAndTheSocketLives) {
  os::SocketAddress here;
  os::SocketAddress nowhere;
  {
    const UniqueFd gone = udp_socket(nowhere);
  }
  UniqueFd fd = udp_socket(here);
  ASSERT_TRUE(os::connect(fd.get(), nowhere).ok());
  DatagramOwner owner(engine_, std::move(fd));
  owner.socket->start_reading();
  owner.send("anybody?");
  turn();
  EXPECT_EQ(owner.take_log(), (Lines{"receive error " + std::to_string(ECONNREFUSED)}));
  EXPECT_TRUE(owner.socket->receives());
  owner.send("x");
  owner.send("y");
  EXPECT_EQ(owner.take_log(), (Lines{"send error " + std::to_string(ECONNREFUSED)}));
  engine_.close();
}

TEST_P(DatagramKernelTest, TooLargeADatagramIsAnErrorOfItsOwn) {
  os::SocketAddress here;
  UniqueFd fd = udp_socket(here);
  ASSERT_TRUE(os::connect(fd.get(), here).ok());
  DatagramOwner owner(engine_, std::move(fd));
  owner.send(std::string(65508, 'x'));
  owner.send("fits");
  owner.socket->start_reading();
  turn();
  EXPECT_EQ(owner.log, (Lines{"send error " + std::to_string(EMSGSIZE), "datagram fits"}));
  engine_.close();
}

TEST_P(DatagramKernelTest, LargeUnixDatagramsComeWhole) {
  int fds[2] = {-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  UniqueFd far(fds[1]);
  const int room = 1 << 19;
  ASSERT_EQ(::setsockopt(far.get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)), 0);
  DatagramOwner owner(engine_, UniqueFd(fds[0]), DatagramSocket::Sizes::any);
  const std::string bytes(150 * 1024, 'u');
  ASSERT_TRUE(os::send_datagram(far.get(), bytes.data(), bytes.size(), nullptr).ok());
  ASSERT_TRUE(os::send_datagram(far.get(), "x", 1, nullptr).ok());
  owner.socket->start_reading();
  turn();
  EXPECT_EQ(owner.log, (Lines{"datagram " + bytes, "datagram x"}));
  engine_.close();
}

TEST_P(DatagramKernelTest, AForkedChildDeliversNothingOfItsParentsBatch) {
  os::SocketAddress here;
  os::SocketAddress there;
  UniqueFd far = udp_socket(there);
  DatagramOwner owner(engine_, udp_socket(here));
  for (const char* text : {"a", "b"}) {
    ASSERT_TRUE(os::send_datagram(far.get(), text, 1, &here).ok());
  }
  pid_t child = -1;
  owner.on_data = [&] {
    if (child == -1) {
      child = ::fork();
    }
  };
  owner.socket->start_reading();
  turn();
  if (child == 0) {
    ::_exit(owner.log == Lines{"datagram a"} ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(owner.log, (Lines{"datagram a", "datagram b"}));
  engine_.close();
}

}  // namespace
}  // namespace cpploop

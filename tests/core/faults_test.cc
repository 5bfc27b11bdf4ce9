// Faults on purpose and the account of descriptors, in builds that have them.

#ifdef CPPLOOP_FAULTS

#include "core/os/faults.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "core/backend/choice.h"
#include "core/os/epoll_ops.h"
#include "core/os/ledger.h"
#include "core/os/pipe_ops.h"
#include "tests/core/support.h"

namespace cpploop {
namespace {

using os::faults::Rates;
using testing::is_open;
using testing::socket_pair;
using testing::SocketPair;
using testing::some_fd;
using testing::TestHost;

constexpr std::uint32_t kMillion = 1'000'000;

class Faults {
 public:
  explicit Faults(Rates rates, std::uint64_t seed = 1) { os::faults::configure(seed, rates); }
  ~Faults() { os::faults::configure(0, {}); }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;
};

class Refusal {
 public:
  Refusal(const char* name, int error) : name_(name) {
    EXPECT_TRUE(os::faults::refuse(name, error));
  }
  ~Refusal() { EXPECT_TRUE(os::faults::refuse(name_, 0)); }
  Refusal(const Refusal&) = delete;
  Refusal& operator=(const Refusal&) = delete;

 private:
  const char* name_;
};

// The account.

TEST(LedgerDeathTest, WhatSomebodyElseHasClosedIsNotClosedAgain) {
  UniqueFd fd = some_fd();
  ::close(fd.get());
  EXPECT_DEATH(fd.reset(), "is closed at .*faults_test.* but its number stands for another file");
  (void)fd.release();
}

TEST(LedgerDeathTest, AnotherOwnersDescriptorIsNotClosed) {
  UniqueFd first = some_fd();
  ::close(first.get());
  SocketPair pair = socket_pair();
  ASSERT_EQ(pair.near_end.get(), first.get());
  EXPECT_DEATH(first.reset(), "but it is owned by the one who took it at .*support");
  (void)first.release();
  EXPECT_TRUE(is_open(pair.near_end.get()));
}

TEST(LedgerDeathTest, ADescriptorHasOneOwner) {
  const UniqueFd first = some_fd();
  EXPECT_DEATH(UniqueFd second(first.get()), "is taken at .*faults_test.* but it is owned by");
}

TEST(LedgerDeathTest, WhatWasGivenAwayIsNotClosed) {
  UniqueFd fd = some_fd();
  const int number = fd.get();
  const ledger::Ticket ticket = ledger::watch(number);
  EXPECT_EQ(fd.release(), number);
  EXPECT_DEATH(ledger::closes(number, ticket, ledger::Place::current()), "it was given away by");
  ::close(number);
}

TEST(LedgerDeathTest, AnEventOfAnotherFileIsNotDelivered) {
  SocketPair pair = socket_pair();
  const int number = pair.near_end.get();
  const ledger::Ticket ticket = ledger::watch(number);
  ledger::delivers(number, ticket);
  pair.near_end.reset();
  EXPECT_DEATH(ledger::delivers(number, ticket),
               "is delivered, but it was closed at .*faults_test");
  const SocketPair others = socket_pair();
  ASSERT_EQ(others.near_end.get(), number);
  EXPECT_DEATH(ledger::delivers(number, ticket), "is delivered, but it is owned by");
}

TEST(Ledger, CountsWhatIsOurs) {
  const std::uint64_t before = ledger::figures().owned;
  {
    UniqueFd first = some_fd();
    const UniqueFd second = some_fd();
    EXPECT_EQ(ledger::figures().owned, before + 2);
    const UniqueFd third(std::move(first));
    EXPECT_EQ(ledger::figures().owned, before + 2);
  }
  EXPECT_EQ(ledger::figures().owned, before);
}

// Faults.

TEST(FaultsTest, TheSameSeedBringsTheSameFaults) {
  const SocketPair pair = socket_pair();
  const auto some = [&] {
    const Faults faults(Rates{{0, kMillion / 2, kMillion / 4}}, 7);
    std::string answers;
    for (int i = 0; i < 100; ++i) {
      const IoResult sent = os::send(pair.near_end.get(), "0123456789", 10);
      answers += std::to_string(sent.value) + ":" + std::to_string(sent.error) + " ";
    }
    std::array<char, 4096> drained{};
    while (::recv(pair.far_end.get(), drained.data(), drained.size(), 0) > 0) {
    }
    return answers;
  };
  const std::string once = some();
  EXPECT_EQ(once, some());
  EXPECT_NE(once.find("-1:" + std::to_string(EPIPE)), std::string::npos) << once;
}

TEST(FaultsTest, InterruptionsAreNobodysBusiness) {
  const SocketPair pair = socket_pair();
  const Faults faults(Rates{{kMillion / 2, 0, 0}});
  int received = 0;
  for (int i = 0; i < 200; ++i) {
    const IoResult sent = os::send(pair.near_end.get(), "ab", 2);
    ASSERT_TRUE(sent.ok());
    EXPECT_EQ(sent.value, 2);
    std::array<char, 100> buffer{};
    const IoResult result = os::receive(pair.far_end.get(), buffer.data(), buffer.size());
    EXPECT_TRUE(result.ok() || result.would_block()) << result.error;
    received += result.ok() ? static_cast<int>(result.value) : 0;
  }
  EXPECT_GT(received, 0);
}

TEST(FaultsTest, NoByteIsLostOnAVectorThatIsTakenInPieces) {
  const SocketPair pair = socket_pair();
  const Faults faults(Rates{{0, kMillion / 2, 0}});
  std::string whole = "abcdefghijklmnopqrstuvwxyz";
  whole.append(5'000, '.');  // More than is sent as one.
  std::size_t at = 0;
  while (at < whole.size()) {
    std::array<iovec, 2> parts{};
    const std::size_t half = (whole.size() - at) / 2;
    parts[0] = {const_cast<char*>(whole.data()) + at, half};
    parts[1] = {const_cast<char*>(whole.data()) + at + half, whole.size() - at - half};
    const IoResult sent = os::send_vector(pair.near_end.get(), parts.data(), parts.size());
    at += sent.ok() ? static_cast<std::size_t>(sent.value) : 0;
    ASSERT_TRUE(sent.ok() || sent.would_block());
  }
  std::array<char, 6'000> buffer{};
  const ssize_t count = ::recv(pair.far_end.get(), buffer.data(), buffer.size(), 0);
  EXPECT_EQ(std::string(buffer.data(), static_cast<std::size_t>(count)), whole);
}

TEST(FaultsTest, SmallPartsAreSentAsOneAndLargeOnesAsAList) {
  const SocketPair pair = socket_pair();
  const Refusal refusal("sendmsg", EPERM);
  std::string head = "head";
  std::string body(4'092, 'b');
  std::array<iovec, 2> parts{iovec{head.data(), head.size()}, iovec{body.data(), body.size()}};
  EXPECT_EQ(os::send_vector(pair.near_end.get(), parts.data(), parts.size()).value, 4'096);
  body += 'b';
  parts[1] = {body.data(), body.size()};
  EXPECT_EQ(os::send_vector(pair.near_end.get(), parts.data(), parts.size()).error, EPERM);
}

TEST(FaultsTest, ADatagramIsNeverCut) {
  int fds[2] = {-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd near_end(fds[0]);
  const UniqueFd far_end(fds[1]);
  const Faults faults(Rates{{kMillion / 3, kMillion / 3, 0}});
  for (int i = 0; i < 100; ++i) {
    while (!os::send_datagram(near_end.get(), "0123456789", 10, nullptr).ok()) {
    }
    std::array<char, 100> buffer{};
    IoResult result = IoResult::failure(EAGAIN);
    while (!result.ok()) {
      result = os::receive_now(far_end.get(), buffer.data(), buffer.size(), nullptr);
    }
    EXPECT_EQ(result.value, 10);
  }
}

// The ring's operations.

class RingFaultsTest : public testing::RingEngineTest {
 protected:
  void SetUp() override {
    RingEngineTest::SetUp();
    if (engine_ == nullptr) {
      return;
    }
    SocketPair pair = socket_pair();
    near_ = std::make_unique<testing::StreamOwner>(*engine_, std::move(pair.near_end));
    far_ = std::make_unique<testing::StreamOwner>(*engine_, std::move(pair.far_end));
    near_->socket->start_reading();
    far_->socket->start_reading();
  }
  void TearDown() override {
    near_.reset();
    far_.reset();
    RingEngineTest::TearDown();
  }
  void turn_until(const std::function<bool()>& done) {
    const std::int64_t until = monotonic_now_ns() + 10'000'000'000;
    while (!done() && monotonic_now_ns() < until) {
      ASSERT_EQ(engine_->turn(), 0);
    }
    EXPECT_TRUE(done());
  }
  // Small messages both ways, written by callbacks so that they may wait for the poll.
  void talk(int messages) {
    std::string sent;
    for (int i = 0; i < messages; ++i) {
      const std::string message = "message " + std::to_string(i) + ";";
      sent += message;
      for (testing::StreamOwner* owner : {near_.get(), far_.get()}) {
        call_soon([owner, message] { owner->write(message); });
      }
      turn_until([&] { return near_->received.size() >= sent.size() / 2; });
    }
    turn_until([&] { return near_->received.size() + far_->received.size() >= 2 * sent.size(); });
    EXPECT_EQ(near_->received, sent);
    EXPECT_EQ(far_->received, sent);
  }

  std::unique_ptr<testing::StreamOwner> near_;
  std::unique_ptr<testing::StreamOwner> far_;
};

TEST_F(RingFaultsTest, NoByteIsLostOrDoubledWhenOperationsFailForAWhile) {
  for (const std::uint64_t seed : {1, 2, 3}) {
    near_->received.clear();
    far_->received.clear();
    const auto before = os::faults::figures().injected;
    const Faults faults(Rates{{kMillion / 5, kMillion / 5, 0}}, seed);
    talk(100);
    EXPECT_GT(os::faults::figures().injected[0], before[0]);
    EXPECT_GT(os::faults::figures().injected[1], before[1]);
  }
}

TEST_F(RingFaultsTest, StandingReceiveThatFindsNoBuffersIsBegunAgain) {
  talk(20);
  near_->received.clear();
  far_->received.clear();
  {
    const Refusal refusal("ring_receive", ENOBUFS);
    // Ends what stands: the next ones fail.
    (void)near_->socket->pause_reading();
    (void)far_->socket->pause_reading();
    turn();
    (void)near_->socket->resume_reading();
    (void)far_->socket->resume_reading();
    for (int i = 0; i < 20; ++i) {
      turn();
    }
  }
  talk(20);
}

// What a standing operation still holds would keep the connection open for the peer.
TEST_F(RingFaultsTest, PeerSeesTheEndAtOnceThoughCallsFailForAWhile) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    const Faults faults(Rates{{kMillion / 5, 0, 0}}, seed);
    SocketPair pair = socket_pair();
    testing::StreamOwner owner(*engine_, std::move(pair.near_end));
    owner.socket->start_reading();
    turn();
    owner.socket.reset();
    char byte = 0;
    EXPECT_EQ(::recv(pair.far_end.get(), &byte, 1, MSG_DONTWAIT), 0) << "seed " << seed;
  }
}

TEST_F(RingFaultsTest, PeerSeesTheEndThoughTheRingTakesNoCalls) {
  SocketPair pair = socket_pair();
  testing::StreamOwner owner(*engine_, std::move(pair.near_end));
  owner.socket->start_reading();
  turn();
  const Refusal refusal("io_uring_enter", EAGAIN);
  owner.socket.reset();
  // The kernel ends a ring's operations behind the back of who gave it up.
  pollfd end{pair.far_end.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&end, 1, 10'000), 1);
  char byte = 0;
  EXPECT_EQ(::recv(pair.far_end.get(), &byte, 1, MSG_DONTWAIT), 0);
}

// A kernel before 6.1: each send reports, and none says how much went out before it failed.
class OldRingTest : public RingFaultsTest {
 private:
  Refusal refusal_{"ring_deferred", EINVAL};
};

TEST_F(OldRingTest, CarriesEveryByteAsWell) {
  talk(50);
  near_->received.clear();
  far_->received.clear();
  const Faults faults(Rates{{kMillion / 5, kMillion / 5, 0}}, 4);
  talk(100);
}

TEST_F(RingFaultsTest, FilterThatComesLaterMeansEpoll) {
  talk(20);
  near_->received.clear();
  far_->received.clear();
  const Refusal refusal("io_uring_enter", EPERM);
  talk(20);
}

// Old and fenced kernels.

class FencedTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Errors, FencedTest, ::testing::Values(ENOSYS, EPERM),
                         [](const auto& tested) {
                           return tested.param == ENOSYS ? "ENOSYS" : "EPERM";
                         });

TEST_P(FencedTest, AcceptingGoesOnWithoutAccept4) {
  const Refusal refusal("accept4", GetParam());
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  os::SocketAddress here;
  ASSERT_TRUE(os::local_address(listener.get(), here).ok());
  os::SocketAddress peer;
  EXPECT_TRUE(os::accept(listener.get(), peer).would_block());
  for (int i = 0; i < 2; ++i) {
    const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(client.get(), here.get(), here.length), 0);
    const IoResult accepted = os::accept(listener.get(), peer);
    ASSERT_TRUE(accepted.ok()) << accepted.error;
    const UniqueFd fd(static_cast<int>(accepted.value));
    EXPECT_TRUE(os::is_non_blocking(fd.get()));
    EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(peer.family(), AF_INET);
  }
}

TEST_P(FencedTest, WaitingGoesOnInMilliseconds) {
  const Refusal refusal("epoll_pwait2", GetParam());
  const UniqueFd epoll(static_cast<int>(os::epoll_create().value));
  std::array<epoll_event, 4> events{};
  const std::int64_t begin = monotonic_now_ns();
  const IoResult result = os::epoll_wait(epoll.get(), events.data(), 4, 1'500'000);
  EXPECT_TRUE(result.ok());
  EXPECT_GE(monotonic_now_ns() - begin, 1'500'000);
  EXPECT_EQ(os::wait_precision(), os::WaitPrecision::milliseconds);
}

TEST(FencedKernelTest, EpollThatTakesNoMoreIsAskedNowAndThen) {
  TestHost host;
  Engine engine(host);
  SocketPair pair = socket_pair();
  testing::StreamOwner owner(engine, std::move(pair.near_end));
  const Refusal refusal("epoll_ctl", ENOSPC);
  owner.socket->start_reading();
  ASSERT_EQ(::send(pair.far_end.get(), "x", 1, 0), 1);
  const std::uint64_t before = os::faults::figures().calls;
  const std::int64_t until = monotonic_now_ns() + 100'000'000;
  while (monotonic_now_ns() < until) {
    ASSERT_EQ(engine.turn(), 0);
  }
  EXPECT_EQ(owner.received, "x");
  EXPECT_LT(os::faults::figures().calls - before, 500U);
  owner.socket.reset();
  engine.close();
}

}  // namespace
}  // namespace cpploop

#endif

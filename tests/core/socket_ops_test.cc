#include "core/os/socket_ops.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <array>
#include <chrono>
#include <climits>
#include <cstring>
#include <string>
#include <thread>

#include "tests/core/signal_storm.h"
#include "tests/core/support.h"

namespace cpploop {
namespace {

using testing::SignalStorm;
using testing::socket_pair;
using testing::SocketPair;
using testing::some_fd;

TEST(SocketOps, ReceivesWhatWasSent) {
  const SocketPair pair = socket_pair();
  EXPECT_EQ(os::send(pair.near_end.get(), "hello", 5).value, 5);
  std::array<char, 16> buffer{};
  const IoResult result = os::receive(pair.far_end.get(), buffer.data(), buffer.size());
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(std::string(buffer.data(), 5), "hello");
  EXPECT_EQ(result.value, 5);
}

TEST(SocketOps, ReceivingFromAnEmptySocketWouldBlock) {
  const SocketPair pair = socket_pair();
  char byte = 0;
  const IoResult result = os::receive(pair.near_end.get(), &byte, 1);
  EXPECT_FALSE(result.ok());
  EXPECT_TRUE(result.would_block());
}

TEST(SocketOps, SendingToAClosedPeerIsAnErrorAndNoSignal) {
  SocketPair pair = socket_pair();
  pair.far_end.reset();
  EXPECT_EQ(os::send(pair.near_end.get(), "x", 1).error, EPIPE);
  const iovec part{const_cast<char*>("x"), 1};
  EXPECT_EQ(os::send_vector(pair.near_end.get(), &part, 1).error, EPIPE);
}

TEST(SocketOps, TheImpatientPairNeverWaitsOnABlockingDescriptor) {
  int fds[2] = {-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd near_end(fds[0]);
  const UniqueFd far_end(fds[1]);
  EXPECT_FALSE(os::is_non_blocking(near_end.get()));
  EXPECT_FALSE(os::is_non_blocking(-1));
  EXPECT_TRUE(os::is_non_blocking(socket_pair().near_end.get()));
  std::array<char, 4096> buffer{};
  EXPECT_TRUE(os::receive_now(near_end.get(), buffer.data(), 1, nullptr).would_block());
  IoResult sent;
  while ((sent = os::send_now(near_end.get(), buffer.data(), buffer.size())).ok()) {
  }
  EXPECT_TRUE(sent.would_block());
}

TEST(SocketOps, ReceivesFromWhoSent) {
  const UniqueFd receiver(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const UniqueFd sender(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (const int fd : {receiver.get(), sender.get()}) {
    ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof(any)), 0);
  }
  os::SocketAddress to;
  os::SocketAddress expected;
  ASSERT_TRUE(os::local_address(receiver.get(), to).ok());
  ASSERT_TRUE(os::local_address(sender.get(), expected).ok());
  ASSERT_TRUE(os::connect(sender.get(), to).ok());
  EXPECT_EQ(os::send_now(sender.get(), "hello", 5).value, 5);
  std::array<char, 16> buffer{};
  os::SocketAddress from;
  EXPECT_EQ(os::receive_now(receiver.get(), buffer.data(), 2, &from).value, 2);
  ASSERT_EQ(from.length, expected.length);
  EXPECT_EQ(std::memcmp(&from.storage, &expected.storage, from.length), 0);
}

TEST(SocketOps, AStreamHasNoSenderToName) {
  const SocketPair pair = socket_pair();
  ASSERT_EQ(os::send(pair.near_end.get(), "x", 1).value, 1);
  char byte = 0;
  os::SocketAddress from;
  EXPECT_EQ(os::receive_now(pair.far_end.get(), &byte, 1, &from).value, 1);
  EXPECT_EQ(from.family(), AF_UNSPEC);
}

TEST(SocketOps, VectorsLongerThanTheKernelTakesAreSentInPart) {
  const SocketPair pair = socket_pair();
  std::string bytes = "12345678";
  const std::vector<iovec> parts(IOV_MAX + 10, iovec{bytes.data(), bytes.size()});
  EXPECT_EQ(os::send_vector(pair.near_end.get(), parts.data(), parts.size()).value,
            IOV_MAX * static_cast<std::int64_t>(bytes.size()));
}

// Around the size up to which parts are joined, and where single parts are below and beyond it.
TEST(SocketOps, PartsArriveInTheirOrderHoweverLargeTheyAre) {
  constexpr std::size_t kJoined = 4096;
  const std::vector<std::vector<std::size_t>> cases = {
      {150, 13},        {1, kJoined - 1}, {1, kJoined},     {kJoined, 1},
      {kJoined + 1, 1}, {2048, 2047, 1},  {2048, 2048, 1},  {kJoined, kJoined},
      {0, 5, 0, 7},     {1, 20'000, 1},   {4000, 90, 7, 1}, {1, 2, 3, 4, 5, 6}};
  for (const std::vector<std::size_t>& sizes : cases) {
    const SocketPair pair = socket_pair();
    std::string whole;
    for (const std::size_t size : sizes) {
      whole.append(size, static_cast<char>('a' + whole.size() % 26));
    }
    std::vector<iovec> parts;
    std::size_t at = 0;
    for (const std::size_t size : sizes) {
      parts.push_back({whole.data() + at, size});
      at += size;
    }
    ASSERT_EQ(os::send_vector(pair.near_end.get(), parts.data(), parts.size()).value,
              static_cast<std::int64_t>(whole.size()));
    std::string received(whole.size() + 1, '\0');
    std::size_t count = 0;
    while (count < whole.size()) {
      const IoResult got =
          os::receive(pair.far_end.get(), received.data() + count, received.size() - count);
      ASSERT_TRUE(got.ok());
      count += static_cast<std::size_t>(got.value);
    }
    received.resize(count);
    EXPECT_EQ(received, whole);
  }
}

TEST(SocketOps, ShuttingDownEndsThePeersStream) {
  const SocketPair pair = socket_pair();
  EXPECT_TRUE(os::shutdown_write(pair.near_end.get()).ok());
  char byte = 0;
  const IoResult result = os::receive(pair.far_end.get(), &byte, 1);
  EXPECT_TRUE(result.ok());
  EXPECT_EQ(result.value, 0);
}

TEST(SocketOps, BlockingReceiveIsRetriedWhenASignalInterruptsIt) {
  int fds[2] = {-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd near_end(fds[0]);
  const UniqueFd far_end(fds[1]);
  const int before = SignalStorm::signals();
  const SignalStorm storm;
  std::thread peer([&] {
    while (SignalStorm::signals() < before + 10) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    (void)os::send(far_end.get(), "late", 4);
  });
  std::array<char, 8> buffer{};
  const IoResult result = os::receive(near_end.get(), buffer.data(), buffer.size());
  peer.join();
  EXPECT_EQ(result.error, 0);
  EXPECT_EQ(result.value, 4);
}

TEST(SocketOps, AcceptedDescriptorsAreNonBlockingAndCloseOnExec) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  os::SocketAddress address;
  auto* inet = reinterpret_cast<sockaddr_in*>(&address.storage);
  inet->sin_family = AF_INET;
  inet->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.length = sizeof(sockaddr_in);
  ASSERT_EQ(::bind(listener.get(), address.get(), address.length), 0);
  ASSERT_EQ(::listen(listener.get(), 8), 0);
  ASSERT_TRUE(os::local_address(listener.get(), address).ok());
  os::SocketAddress peer;
  EXPECT_TRUE(os::accept(listener.get(), peer).would_block());

  const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_TRUE(os::connect(client.get(), address).ok());
  const IoResult result = os::accept(listener.get(), peer);
  ASSERT_TRUE(result.ok());
  const UniqueFd accepted(static_cast<int>(result.value));
  EXPECT_NE(::fcntl(accepted.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(accepted.get(), F_GETFD) & FD_CLOEXEC, 0);
  os::SocketAddress local;
  ASSERT_TRUE(os::local_address(client.get(), local).ok());
  EXPECT_EQ(peer.family(), AF_INET);
  EXPECT_EQ(reinterpret_cast<sockaddr_in*>(&peer.storage)->sin_port,
            reinterpret_cast<sockaddr_in*>(&local.storage)->sin_port);
  os::SocketAddress asked;
  ASSERT_TRUE(os::peer_address(accepted.get(), asked).ok());
  EXPECT_EQ(asked.length, peer.length);

  os::set_no_delay(accepted.get());
  int no_delay = 0;
  socklen_t size = sizeof(no_delay);
  ASSERT_EQ(::getsockopt(accepted.get(), IPPROTO_TCP, TCP_NODELAY, &no_delay, &size), 0);
  EXPECT_NE(no_delay, 0);
}

TEST(SocketOps, NoDelayOnAUnixSocketIsHarmless) {
  const SocketPair pair = socket_pair();
  os::set_no_delay(pair.near_end.get());
}

TEST(SocketOps, ConnectingToNobodyIsRefused) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  os::SocketAddress address;
  auto* local = reinterpret_cast<sockaddr_un*>(&address.storage);
  local->sun_family = AF_UNIX;
  // An abstract name (its first byte is zero) that nobody has.
  const std::string name = "cpploop-nobody-" + std::to_string(::getpid());
  name.copy(local->sun_path + 1, name.size());
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  EXPECT_EQ(os::connect(fd.get(), address).error, ECONNREFUSED);
}

TEST(SocketOps, PendingErrorOfWhatIsNoSocketIsAnErrno) {
  const UniqueFd fd = some_fd();
  EXPECT_EQ(os::pending_error(fd.get()), ENOTSOCK);
  EXPECT_EQ(os::pending_error(-1), EBADF);
}

TEST(SocketOps, AddressWithoutLengthHasNoFamily) {
  EXPECT_EQ(os::SocketAddress{}.family(), AF_UNSPEC);
}

TEST(SocketOps, IsOpenKnowsNumbersThatAreNoDescriptors) {
  UniqueFd fd = some_fd();
  EXPECT_TRUE(os::is_open(fd.get()));
  EXPECT_FALSE(os::is_open(-1));
  EXPECT_FALSE(os::is_open(INT_MAX));
}

}  // namespace
}  // namespace cpploop

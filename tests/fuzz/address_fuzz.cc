#include <arpa/inet.h>
#include <netdb.h>
#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

#include "core/os/address_text.h"
#include "tests/fuzz/operations.h"

// What is read as an address is what libc's own resolver reads in the same text, and is written as
// it was read; and of an address that the kernel gives, of any family, bytes and length, no byte is
// looked at that it did not give.

namespace {

using cpploop::os::SocketAddress;

constexpr std::string_view kLetters = "0123456789abcdefABCDEFxX.:%-[]/ \t\n";

class Target {
 public:
  explicit Target(cpploop::fuzz::Operations& operations) : operations_(operations) {}

  void run() {
    while (!operations_.over()) {
      switch (operations_.below(4)) {
        case 0:
          literal_v4(text());
          break;
        case 1:
          literal_v6(text());
          break;
        case 2:
          given_by_the_kernel();
          break;
        default:
          unix_name();
          break;
      }
    }
  }

 private:
  // Of the letters that addresses have, or now and then of any.
  [[nodiscard]] std::string text() {
    std::string letters;
    const bool any = operations_.below(8) == 0;
    for (std::size_t count = operations_.below(50); count > 0; --count) {
      const auto letter = any ? static_cast<char>(operations_.byte())
                              : kLetters[operations_.below(kLetters.size())];
      if (letter != '\0') {
        letters += letter;
      }
    }
    return letters;
  }

  // What the resolver reads as a literal without asking anybody.
  [[nodiscard]] static bool resolve(const std::string& host, int family, SocketAddress& address) {
    addrinfo hints{};
    hints.ai_family = family;
    hints.ai_socktype = SOCK_DGRAM;
    hints.ai_flags = AI_NUMERICHOST;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) {
      return false;
    }
    std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
    address.length = found->ai_addrlen;
    ::freeaddrinfo(found);
    return true;
  }

  void literal_v4(const std::string& host) {
    SocketAddress address;
    if (!cpploop::os::read_v4(host.c_str(), port(), address)) {
      FUZZ_CHECK(address.length == 0);
      return;
    }
    SocketAddress known;
    FUZZ_CHECK(resolve(host, AF_INET, known));
    const auto written = cpploop::os::write_v4(address);
    FUZZ_CHECK(std::string_view(written.host) == cpploop::os::write_v4(known).host);
    SocketAddress again;
    FUZZ_CHECK(cpploop::os::read_v4(written.host, written.port, again));
    FUZZ_CHECK(same(address, again));
  }

  void literal_v6(const std::string& host) {
    SocketAddress address;
    const std::uint32_t flowinfo = number() & 0xfffff;
    const std::uint32_t scope = number();
    if (!cpploop::os::read_v6(host.c_str(), port(), flowinfo, scope, address)) {
      FUZZ_CHECK(address.length == 0);
      return;
    }
    SocketAddress known;
    FUZZ_CHECK(resolve(host, AF_INET6, known));
    const auto written = cpploop::os::write_v6(address);
    FUZZ_CHECK(std::string_view(written.host) == cpploop::os::write_v6(known).host);
    FUZZ_CHECK(written.flowinfo == flowinfo && written.scope == scope);
    SocketAddress again;
    FUZZ_CHECK(cpploop::os::read_v6(written.host, written.port, flowinfo, scope, again));
    FUZZ_CHECK(same(address, again));
  }

  // Any bytes and any length, as an address of each family.
  void given_by_the_kernel() {
    SocketAddress address;
    auto* bytes = reinterpret_cast<unsigned char*>(&address.storage);
    for (std::size_t at = 0; at < sizeof(address.storage) && !operations_.over(); ++at) {
      bytes[at] = operations_.byte();
    }
    address.length = static_cast<socklen_t>(operations_.below(sizeof(address.storage) + 1));
    FUZZ_CHECK(INET_ADDRSTRLEN > std::strlen(cpploop::os::write_v4(address).host));
    FUZZ_CHECK(INET6_ADDRSTRLEN > std::strlen(cpploop::os::write_v6(address).host));
    const std::string_view name = cpploop::os::unix_name(address);
    FUZZ_CHECK(name.empty() || offsetof(sockaddr_un, sun_path) + name.size() <= address.length);
    FUZZ_CHECK(name.size() <= sizeof(sockaddr_un::sun_path));
  }

  // A name of any length that a socket can have comes out as it went in.
  void unix_name() {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const bool abstract = operations_.below(2) == 0;
    std::string wanted(abstract ? 1 : 0, '\0');
    std::size_t count = operations_.below(sizeof(name.sun_path) - wanted.size() + 1);
    for (; count > 0; --count) {
      const auto letter = static_cast<char>(operations_.byte());
      wanted += letter == '\0' && !abstract ? 'n' : letter;
    }
    std::memcpy(name.sun_path, wanted.data(), wanted.size());
    SocketAddress address;
    std::memcpy(&address.storage, &name, sizeof(name));
    // The kernel counts a path's terminator, and has none in an abstract name.
    const std::size_t terminator = abstract || wanted.empty() ? 0 : 1;
    address.length =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + wanted.size() + terminator);
    FUZZ_CHECK(cpploop::os::unix_name(address) == wanted);
  }

  [[nodiscard]] std::uint16_t port() { return static_cast<std::uint16_t>(number()); }
  [[nodiscard]] std::uint32_t number() {
    std::uint32_t value = 0;
    for (int count = 0; count < 4; ++count) {
      value = value << 8 | operations_.byte();
    }
    return value;
  }
  [[nodiscard]] static bool same(const SocketAddress& one, const SocketAddress& other) {
    return one.length == other.length && std::memcmp(&one.storage, &other.storage, one.length) == 0;
  }

  cpploop::fuzz::Operations& operations_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return cpploop::fuzz::run_input<Target>(data, size);
}

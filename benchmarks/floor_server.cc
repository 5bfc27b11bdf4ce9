// The floor: an echo server with nothing between the kernel and the bytes. No event loop written
// for Python can spend less CPU per message than this, so it says how much of a row is ours to
// win. One thread, level-triggered epoll, one recv and one send per readiness.
//
//   floor_server --port PORT     (0 picks a free one)
//   floor_server --unix PATH
//
// Prints one JSON line when it listens, like every server of this folder.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace {

constexpr int kBacklog = 1024;
constexpr int kMaxEvents = 256;
constexpr std::size_t kReadSize = 256 * 1024;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "floor_server: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

struct Client {
  int fd;
  // What the kernel did not take at once. While it is not empty nothing more is read, so a peer
  // that does not read cannot make the server's memory grow.
  std::vector<char> unsent;
  std::size_t sent = 0;
};

class FloorServer {
 public:
  explicit FloorServer(int listener)
      : listener_(listener), epoll_(::epoll_create1(EPOLL_CLOEXEC)), read_buffer_(kReadSize) {
    if (epoll_ < 0) die("epoll_create1");
    epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
    if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) < 0) die("epoll_ctl");
  }

  [[noreturn]] void run() {
    std::array<epoll_event, kMaxEvents> events;
    for (;;) {
      const int count = ::epoll_wait(epoll_, events.data(), kMaxEvents, -1);
      if (count < 0 && errno != EINTR) die("epoll_wait");
      for (int i = 0; i < count; ++i) {
        auto* client = static_cast<Client*>(events[static_cast<std::size_t>(i)].data.ptr);
        if (client == nullptr) {
          accept_all();
        } else if (client->unsent.empty()) {
          echo(client);
        } else {
          flush(client);
        }
      }
    }
  }

 private:
  void accept_all() {
    for (;;) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      const int on = 1;  // Fails on a Unix socket, where there is nothing to switch off.
      (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      auto* client = new Client{.fd = fd, .unsent = {}};
      epoll_event event{.events = EPOLLIN, .data = {.ptr = client}};
      if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) < 0) drop(client);
    }
  }

  void echo(Client* client) {
    const ssize_t got = ::recv(client->fd, read_buffer_.data(), read_buffer_.size(), 0);
    if (got <= 0) {
      if (got == 0 || (errno != EAGAIN && errno != EINTR)) drop(client);
      return;
    }
    const ssize_t sent =
        ::send(client->fd, read_buffer_.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL);
    if (sent == got) return;
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return drop(client);
    client->unsent.assign(read_buffer_.data() + (sent < 0 ? 0 : sent), read_buffer_.data() + got);
    client->sent = 0;
    watch(client, EPOLLOUT);
  }

  void flush(Client* client) {
    const ssize_t sent = ::send(client->fd, client->unsent.data() + client->sent,
                                client->unsent.size() - client->sent, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN && errno != EINTR) drop(client);
      return;
    }
    client->sent += static_cast<std::size_t>(sent);
    if (client->sent < client->unsent.size()) return;
    client->unsent.clear();
    watch(client, EPOLLIN);
  }

  void watch(Client* client, std::uint32_t interest) {
    epoll_event event{.events = interest, .data = {.ptr = client}};
    if (::epoll_ctl(epoll_, EPOLL_CTL_MOD, client->fd, &event) < 0) die("epoll_ctl");
  }

  void drop(Client* client) {
    ::close(client->fd);
    delete client;
  }

  int listener_;
  int epoll_;
  std::vector<char> read_buffer_;
};

int listen_tcp(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  const int on = 1;
  (void)::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) die("bind");
  if (::listen(fd, kBacklog) < 0) die("listen");
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) < 0) die("getsockname");
  std::printf("{\"ready\": true, \"loop\": \"floor\", \"port\": %d}\n", ntohs(address.sin_port));
  return fd;
}

int listen_unix(std::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    die("--unix");
  }
  path.copy(address.sun_path, path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) die("bind");
  if (::listen(fd, kBacklog) < 0) die("listen");
  std::printf("{\"ready\": true, \"loop\": \"floor\", \"port\": null}\n");
  return fd;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view option = argc == 3 ? argv[1] : "";
  int listener = -1;
  if (option == "--port") {
    listener = listen_tcp(static_cast<std::uint16_t>(std::strtoul(argv[2], nullptr, 10)));
  } else if (option == "--unix") {
    listener = listen_unix(argv[2]);
  } else {
    std::fprintf(stderr, "usage: floor_server --port PORT | --unix PATH\n");
    return 2;
  }
  std::fflush(stdout);
  FloorServer(listener).run();
}

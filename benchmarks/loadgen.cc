// The load generator: N connections on one thread, each with one request in flight.
//
//   loadgen --mode echo --port P | --unix PATH  --connections N --size BYTES
//   loadgen --mode http --port P | --unix PATH  --connections N --path /x --body-size BYTES
//   loadgen --mode handshake --port P           --connections N --resume 0|1
//                              N threads that connect, shake hands, echo 64 bytes and close
//     --tls 1                  TLS on each connection (the server's certificate is not checked)
//     --seconds T --warmup T   the measured window and what comes before it
//     --rate R                 open loop: R requests/s in all, arriving at random (Poisson), with
//                              latency counted from when a request was due, not from when it left;
//                              what is due and unanswered at the end counts with the time so far
//     --slow N                 beside them, echo only: N connections that send as much as goes out
//                              and take back 4 KiB each 10 ms; they are not among the requests
//     --server-pid PID         also measures that process's CPU time over the same window; what
//                              is then left of the machine's is other_cpu_seconds
//
// It prints one JSON object. Every answer is checked; the first wrong byte, lost connection or
// stalled request ends the run with "errors": 1, the reason, and exit status 1, because a figure
// made of wrong answers is worth nothing.
//
// Echo messages up to kFullCheck bytes are compared whole, and so is every kFullCheckEvery-th
// longer one; the others at both ends. Both ends carry the connection's number and the message's,
// so bytes that belong to another connection or to an earlier message cannot pass.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <queue>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr std::size_t kReadSize = 256 * 1024;
constexpr std::size_t kFullCheck = 8 * 1024;
constexpr std::uint64_t kFullCheckEvery = 16;
constexpr std::size_t kEndCheck = 64;
constexpr std::size_t kMaxHeadLine = 16 * 1024;
constexpr std::int64_t kStall_ns = 10'000'000'000;
constexpr std::int64_t kTick_ns = 100'000'000;
constexpr std::int64_t kNanoseconds = 1'000'000'000;
constexpr std::int64_t kSlowPace_ns = 10'000'000;
constexpr std::size_t kSlowRead = 4 * 1024;

using Bytes = std::span<const char>;

// Ends the run. The message goes into the JSON, so it holds no quotes or control characters.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void fail_errno(const std::string& what) {
  throw Failure(what + ": " + std::strerror(errno));
}

std::int64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * kNanoseconds + t.tv_nsec;
}

// ---- options ------------------------------------------------------------------------------------

enum class Mode { kEcho, kHttp, kHandshake };

struct Options {
  Mode mode = Mode::kEcho;
  std::uint16_t port = 0;
  std::string unix_path;
  std::size_t connections = 1;
  std::size_t size = 1024;
  std::string path = "/";
  std::size_t body_size = 0;
  double seconds = 2.0;
  double warmup = 0.5;
  double rate = 0.0;
  pid_t server_pid = 0;
  bool tls = false;
  bool resume = false;
  std::size_t slow = 0;
};

[[noreturn]] void usage(const std::string& problem) {
  std::fprintf(stderr, "loadgen: %s (the options are in loadgen.cc's first lines)\n",
               problem.c_str());
  std::exit(2);
}

double parse_number(const std::string& name, const char* text, double least) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= least)) usage("bad value for " + name);
  return value;
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) usage(name + " needs a value");
    const char* value = argv[i + 1];
    const auto count = [&](double least) {
      return static_cast<std::size_t>(parse_number(name, value, least));
    };
    if (name == "--mode") {
      const std::string_view mode = value;
      if (mode == "echo") {
        options.mode = Mode::kEcho;
      } else if (mode == "http") {
        options.mode = Mode::kHttp;
      } else if (mode == "handshake") {
        options.mode = Mode::kHandshake;
      } else {
        usage("--mode is echo, http or handshake");
      }
    } else if (name == "--port") {
      options.port = static_cast<std::uint16_t>(count(1));
    } else if (name == "--unix") {
      options.unix_path = value;
    } else if (name == "--connections") {
      options.connections = count(1);
    } else if (name == "--size") {
      options.size = count(1);
    } else if (name == "--path") {
      options.path = value;
    } else if (name == "--body-size") {
      options.body_size = count(0);
    } else if (name == "--seconds") {
      options.seconds = parse_number(name, value, 0.01);
    } else if (name == "--warmup") {
      options.warmup = parse_number(name, value, 0);
    } else if (name == "--rate") {
      options.rate = parse_number(name, value, 0);
    } else if (name == "--tls") {
      options.tls = count(0) != 0;
    } else if (name == "--resume") {
      options.resume = count(0) != 0;
    } else if (name == "--slow") {
      options.slow = count(0);
    } else if (name == "--server-pid") {
      options.server_pid = static_cast<pid_t>(count(1));
    } else {
      usage("unknown option " + name);
    }
  }
  if ((options.port == 0) == options.unix_path.empty()) usage("give --port or --unix");
  if (options.slow != 0 && (options.tls || options.mode != Mode::kEcho)) {
    usage("--slow is for echo without TLS");
  }
  return options;
}

// ---- measuring ----------------------------------------------------------------------------------

// Latencies in buckets whose width is 1/64 of their value: any percentile within 1.6 %, in fixed
// memory, at the cost of one increment.
class Histogram {
 public:
  void add(std::int64_t value_ns) {
    const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(value_ns, 0));
    ++counts_[index_of(value)];
    ++total_;
    max_ = std::max(max_, value);
  }

  void clear() { *this = Histogram(); }

  [[nodiscard]] double percentile_us(double percent) const {
    const auto wanted =
        static_cast<std::uint64_t>(std::ceil(percent / 100.0 * static_cast<double>(total_)));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen >= wanted && seen > 0) return middle_of(i) / 1e3;
    }
    return 0.0;
  }

  [[nodiscard]] double max_us() const { return static_cast<double>(max_) / 1e3; }

 private:
  static constexpr int kSubBits = 6;
  static constexpr std::uint64_t kSub = 1U << kSubBits;

  static std::size_t index_of(std::uint64_t value) {
    if (value < kSub) return value;
    const int shift = static_cast<int>(std::bit_width(value)) - 1 - kSubBits;
    return static_cast<std::size_t>(shift) * kSub + static_cast<std::size_t>(value >> shift);
  }

  static double middle_of(std::size_t index) {
    if (index < kSub) return static_cast<double>(index);
    const auto shift = index / kSub - 1;
    const auto low = static_cast<double>(index - shift * kSub);
    return std::ldexp(low + 0.5, static_cast<int>(shift));
  }

  std::array<std::uint64_t, (64 - kSubBits + 1) * kSub> counts_{};
  std::uint64_t total_ = 0;
  std::uint64_t max_ = 0;
};

// CPU time of another process, all of its threads, in ns: a loop that hides work in a helper
// thread pays for it here.
class ProcessCpu {
 public:
  explicit ProcessCpu(pid_t pid) {
    if (pid == 0) return;
    if (::clock_getcpuclockid(pid, &clock_) != 0) throw Failure("--server-pid: no such process");
    known_ = true;
  }

  [[nodiscard]] std::int64_t read_ns() const {
    timespec t{};
    if (!known_ || ::clock_gettime(clock_, &t) != 0) return 0;
    return t.tv_sec * kNanoseconds + t.tv_nsec;
  }

 private:
  clockid_t clock_{};
  bool known_ = false;
};

std::int64_t own_cpu_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec * kNanoseconds + t.tv_nsec;
}

// Busy time of all cores together, whoever was running (and what a hypervisor took away), in ns.
std::int64_t machine_busy_ns() {
  std::FILE* file = std::fopen("/proc/stat", "re");
  if (file == nullptr) return 0;
  std::array<unsigned long long, 8> t{};  // user nice system idle iowait irq softirq steal
  const int found = std::fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1],
                                &t[2], &t[3], &t[4], &t[5], &t[6], &t[7]);
  std::fclose(file);
  if (found != 8) return 0;
  const auto ticks = static_cast<std::int64_t>(t[0] + t[1] + t[2] + t[5] + t[6] + t[7]);
  return ticks * (kNanoseconds / ::sysconf(_SC_CLK_TCK));
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}

  std::uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  // The gap to the next of events that come at random, `mean` apart on average.
  std::int64_t gap_ns(double mean) {
    const double uniform = (static_cast<double>(next() >> 11) + 0.5) / 9007199254740992.0;
    return static_cast<std::int64_t>(-std::log(uniform) * mean);
  }

 private:
  std::uint64_t state_;
};

// ---- what is said on a connection ---------------------------------------------------------------

// One side of a conversation: the bytes of the next request, and a judge of what comes back.
class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  // The bytes stay valid until the next call.
  virtual Bytes next_request() = 0;
  // Takes all of `data`; true when the answer is complete. Throws Failure when it is wrong.
  virtual bool consume(Bytes data) = 0;
};

class EchoExchange final : public Exchange {
 public:
  EchoExchange(std::size_t number, std::size_t size) : number_(number), message_(size) {
    Random random(number + 1);
    for (char& byte : message_)
      byte = static_cast<char>(random.next() >> 56);
  }

  Bytes next_request() override {
    ++sequence_;
    received_ = 0;
    if (message_.size() >= 2 * sizeof(Stamp)) {
      const Stamp stamp{number_, sequence_};
      std::memcpy(message_.data(), &stamp, sizeof stamp);
      std::memcpy(message_.data() + message_.size() - sizeof stamp, &stamp, sizeof stamp);
    }
    return message_;
  }

  bool consume(Bytes data) override {
    if (data.size() > message_.size() - received_) {
      throw Failure("wrong bytes: more came back than was sent" + where());
    }
    const bool whole = message_.size() <= kFullCheck || sequence_ % kFullCheckEvery == 0;
    if (whole) {
      check(data, 0, message_.size());
    } else {
      check(data, 0, kEndCheck);
      check(data, message_.size() - kEndCheck, message_.size());
    }
    received_ += data.size();
    return received_ == message_.size();
  }

 private:
  struct Stamp {
    std::uint64_t connection;
    std::uint64_t sequence;
  };

  // Compares the part of `data` that falls inside [begin, end) of the message.
  void check(Bytes data, std::size_t begin, std::size_t end) const {
    const std::size_t from = std::max(begin, received_);
    const std::size_t to = std::min(end, received_ + data.size());
    if (from >= to) return;
    if (std::memcmp(data.data() + (from - received_), message_.data() + from, to - from) != 0) {
      throw Failure("wrong bytes: the echo differs" + where());
    }
  }

  [[nodiscard]] std::string where() const {
    return " (connection " + std::to_string(number_) + ", message " + std::to_string(sequence_) +
           ", after " + std::to_string(received_) + " bytes)";
  }

  std::uint64_t number_;
  std::vector<char> message_;
  std::uint64_t sequence_ = 0;
  std::size_t received_ = 0;
};

// A keep-alive GET. The body must be `body_size` bytes of the alphabet over and over, which every
// server of this folder sends, whether with Content-Length or chunked.
class HttpExchange final : public Exchange {
 public:
  HttpExchange(const std::string& path, std::size_t body_size)
      : request_("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: loadgen\r\n" +
                 "Accept: */*\r\n\r\n"),
        body_size_(body_size) {
    for (std::size_t i = 0; i < kAlphabet + kReadSize; ++i) {
      pattern_.push_back(static_cast<char>('a' + i % kAlphabet));
    }
  }

  Bytes next_request() override {
    state_ = State::kStatus;
    line_.clear();
    length_.reset();
    chunked_ = false;
    body_received_ = 0;
    return request_;
  }

  bool consume(Bytes data) override {
    while (!data.empty()) {
      if (state_ == State::kDone) throw Failure("wrong bytes: data after the response");
      switch (state_) {
        case State::kBody:
        case State::kChunkData:
          data = consume_body(data);
          break;
        default:
          data = consume_line(data);
          break;
      }
    }
    return state_ == State::kDone;
  }

 private:
  enum class State { kStatus, kHeader, kBody, kChunkSize, kChunkData, kChunkEnd, kTrailer, kDone };

  // The framing of the body; nothing at all is not an answer a keep-alive connection can carry.
  class Length {
   public:
    void set(std::size_t value) {
      if (known_ && value != value_) throw Failure("bad response: two lengths");
      value_ = value;
      known_ = true;
    }
    void reset() { known_ = false; }
    [[nodiscard]] bool known() const { return known_; }
    [[nodiscard]] std::size_t value() const { return value_; }

   private:
    std::size_t value_ = 0;
    bool known_ = false;
  };

  static constexpr std::size_t kAlphabet = 26;

  Bytes consume_line(Bytes data) {
    const auto* end = static_cast<const char*>(std::memchr(data.data(), '\n', data.size()));
    const std::size_t size =
        end == nullptr ? data.size() : static_cast<std::size_t>(end - data.data()) + 1;
    if (line_.size() + size > kMaxHeadLine) throw Failure("bad response: a line too long");
    line_.append(data.data(), size);
    if (end != nullptr) {
      if (line_.size() < 2 || line_[line_.size() - 2] != '\r') {
        throw Failure("bad response: a line that does not end in CR LF");
      }
      on_line(std::string_view(line_).substr(0, line_.size() - 2));
      line_.clear();
    }
    return data.subspan(size);
  }

  void on_line(std::string_view line) {
    switch (state_) {
      case State::kStatus:
        on_status(line);
        break;
      case State::kHeader:
        line.empty() ? on_head_end() : on_header(line);
        break;
      case State::kChunkSize:
        on_chunk_size(line);
        break;
      case State::kChunkEnd:
        if (!line.empty()) throw Failure("bad response: a chunk longer than its size");
        state_ = State::kChunkSize;
        break;
      case State::kTrailer:
        if (line.empty()) finish();
        break;
      case State::kBody:
      case State::kChunkData:
      case State::kDone:
        break;
    }
  }

  void on_status(std::string_view line) {
    if (!line.starts_with("HTTP/1.1 200")) throw Failure("bad response: the status is not 200");
    state_ = State::kHeader;
  }

  void on_header(std::string_view line) {
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) throw Failure("bad response: a header without a colon");
    const std::string_view name = line.substr(0, colon);
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) {
      value.remove_prefix(1);
    }
    while (!value.empty() && (value.back() == ' ' || value.back() == '\t'))
      value.remove_suffix(1);
    if (same(name, "content-length")) {
      length_.set(parse_size(value, 10));
    } else if (same(name, "transfer-encoding")) {
      if (!same(value, "chunked")) throw Failure("bad response: an unknown transfer encoding");
      chunked_ = true;
    } else if (same(name, "connection") && same(value, "close")) {
      throw Failure("bad response: the server ends a keep-alive connection");
    }
  }

  void on_head_end() {
    if (chunked_ == length_.known()) {
      throw Failure("bad response: neither or both of Content-Length and chunked");
    }
    if (chunked_) {
      state_ = State::kChunkSize;
      return;
    }
    state_ = State::kBody;
    left_ = length_.value();
    if (left_ == 0) finish();
  }

  void on_chunk_size(std::string_view line) {
    left_ = parse_size(line.substr(0, line.find(';')), 16);
    state_ = left_ == 0 ? State::kTrailer : State::kChunkData;
  }

  Bytes consume_body(Bytes data) {
    const std::size_t size = std::min({data.size(), left_, kReadSize});
    const char* expected = pattern_.data() + body_received_ % kAlphabet;
    if (std::memcmp(data.data(), expected, size) != 0) {
      throw Failure("wrong bytes: the body differs");
    }
    body_received_ += size;
    left_ -= size;
    if (left_ == 0) {
      if (state_ == State::kChunkData) {
        state_ = State::kChunkEnd;
      } else {
        finish();
      }
    }
    return data.subspan(size);
  }

  void finish() {
    if (body_received_ != body_size_) {
      throw Failure("wrong bytes: a body of " + std::to_string(body_received_) + ", not " +
                    std::to_string(body_size_));
    }
    state_ = State::kDone;
  }

  static bool same(std::string_view text, std::string_view lower) {
    return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
      return (a >= 'A' && a <= 'Z' ? static_cast<char>(a - 'A' + 'a') : a) == b;
    });
  }

  static std::size_t parse_size(std::string_view text, int base) {
    std::size_t value = 0;
    if (text.empty() || text.size() > 15) throw Failure("bad response: a bad length");
    for (const char c : text) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : base;
      if (digit >= base) throw Failure("bad response: a bad length");
      value = value * static_cast<std::size_t>(base) + static_cast<std::size_t>(digit);
    }
    return value;
  }

  std::string request_;
  std::size_t body_size_;
  std::vector<char> pattern_;
  State state_ = State::kStatus;
  std::string line_;
  Length length_;
  bool chunked_ = false;
  std::size_t left_ = 0;
  std::size_t body_received_ = 0;
};

// ---- connections --------------------------------------------------------------------------------

int open_connection(const Options& options) {
  int fd = -1;
  int result = -1;
  if (options.unix_path.empty()) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(options.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail_errno("socket");
    result = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
    const int on = 1;
    (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  } else {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (options.unix_path.size() >= sizeof address.sun_path) usage("--unix: path too long");
    options.unix_path.copy(address.sun_path, options.unix_path.size());
    fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail_errno("socket");
    result = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  if (result < 0) fail_errno("connect");
  return fd;
}

// ---- TLS ----------------------------------------------------------------------------------------

struct SslDeleter {
  void operator()(SSL* ssl) const { ::SSL_free(ssl); }
  void operator()(SSL_CTX* context) const { ::SSL_CTX_free(context); }
  void operator()(SSL_SESSION* session) const { ::SSL_SESSION_free(session); }
};
using Ssl = std::unique_ptr<SSL, SslDeleter>;
using SslContext = std::unique_ptr<SSL_CTX, SslDeleter>;
using SslSession = std::unique_ptr<SSL_SESSION, SslDeleter>;

[[noreturn]] void fail_tls(const std::string& what) {
  std::array<char, 256> text{};
  ::ERR_error_string_n(::ERR_get_error(), text.data(), text.size());
  throw Failure(what + ": " + text.data());
}

SslContext make_tls_context() {
  SslContext context(::SSL_CTX_new(::TLS_client_method()));
  if (!context) fail_tls("SSL_CTX_new");
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);
  ::SSL_CTX_set_mode(context.get(),
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // Several records by one system call: the client must not be what is measured.
  ::SSL_CTX_set_read_ahead(context.get(), 1);
  ::SSL_CTX_set_default_read_buffer_len(context.get(), 128 * 1024);
  return context;
}

// Shakes hands on a connected, blocking socket.
Ssl start_tls(SSL_CTX& context, int fd, SSL_SESSION* session) {
  Ssl ssl(::SSL_new(&context));
  if (!ssl || ::SSL_set_fd(ssl.get(), fd) != 1) fail_tls("SSL_new");
  if (session != nullptr) ::SSL_set_session(ssl.get(), session);
  if (::SSL_connect(ssl.get()) != 1) fail_tls("SSL_connect");
  return ssl;
}

struct Connection {
  std::size_t number = 0;
  int fd = -1;
  Ssl ssl;
  std::unique_ptr<Exchange> exchange;
  Bytes unsent;
  bool wants_write = false;
  bool in_flight = false;
  std::int64_t started_ns = 0;   // When the request in flight was due.
  std::int64_t next_due_ns = 0;  // Open loop only.
  std::uint64_t completed = 0;
};

// Somebody who asks for much and takes little: sends whenever the kernel lets it, and receives a
// few bytes at a time of what comes back, each of them checked.
class SlowConsumer {
 public:
  explicit SlowConsumer(const Options& options) : fd_(open_connection(options)) {
    for (std::size_t i = 0; i < kPeriod + kReadSize; ++i)
      pattern_.push_back(static_cast<char>('a' + i % kPeriod));
  }

  void tick(std::int64_t now) {
    if (now < next_ns_) return;
    next_ns_ = now + kSlowPace_ns;
    send_what_goes();
    receive_little();
  }

 private:
  static constexpr std::size_t kPeriod = 26;

  void send_what_goes() {
    // Not for ever, should the server take it all: the fast ones have their turn, too.
    for (int i = 0; i < 4; ++i) {
      const ssize_t sent =
          ::send(fd_, pattern_.data() + sent_ % kPeriod, kReadSize, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EAGAIN) return;
      if (sent < 0) fail_errno("send of the slow consumer");
      sent_ += static_cast<std::size_t>(sent);
    }
  }

  void receive_little() {
    std::array<char, kSlowRead> data;
    const ssize_t got = ::recv(fd_, data.data(), data.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0) fail_errno("recv of the slow consumer");
    if (got == 0) throw Failure("the server closed the slow consumer's connection");
    const auto size = static_cast<std::size_t>(got);
    if (std::memcmp(data.data(), pattern_.data() + received_ % kPeriod, size) != 0) {
      throw Failure("wrong bytes: the slow consumer's differ");
    }
    received_ += size;
  }

  int fd_;
  std::vector<char> pattern_;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
  std::int64_t next_ns_ = 0;
};

// What of the clock and of the processors' time falls into the measured part of a run.
class Window {
 public:
  struct Seconds {
    double passed = 0.0;
    double server_cpu = 0.0;
    double own_cpu = 0.0;
    double other_cpu = 0.0;
  };

  explicit Window(pid_t server) : server_cpu_(server) {}

  void open() { begin_ = read(); }

  [[nodiscard]] std::int64_t begin_ns() const { return begin_.now_ns; }

  // Since it was opened.
  [[nodiscard]] Seconds seconds() const {
    const Reading end = read();
    const double server = seconds_between(begin_.server_cpu_ns, end.server_cpu_ns);
    const double own = seconds_between(begin_.own_cpu_ns, end.own_cpu_ns);
    const double busy = seconds_between(begin_.machine_busy_ns, end.machine_busy_ns);
    return {.passed = seconds_between(begin_.now_ns, end.now_ns),
            .server_cpu = server,
            .own_cpu = own,
            .other_cpu = std::max(0.0, busy - server - own)};
  }

 private:
  struct Reading {
    std::int64_t machine_busy_ns = 0;
    std::int64_t own_cpu_ns = 0;
    std::int64_t server_cpu_ns = 0;
    std::int64_t now_ns = 0;
  };

  [[nodiscard]] Reading read() const {
    return {.machine_busy_ns = machine_busy_ns(),
            .own_cpu_ns = own_cpu_ns(),
            .server_cpu_ns = server_cpu_.read_ns(),
            .now_ns = ::now_ns()};
  }

  static double seconds_between(std::int64_t begin_ns, std::int64_t end_ns) {
    return static_cast<double>(end_ns - begin_ns) / 1e9;
  }

  ProcessCpu server_cpu_;
  Reading begin_;
};

// The JSON; `more` is what only one kind of load has to say.
void print_result(const Window::Seconds& seconds, std::uint64_t requests,
                  const Histogram& latencies, const std::string& more = "") {
  std::printf(
      "{\"requests\": %llu, \"seconds\": %.6f, \"rps\": %.1f, \"errors\": 0,\n"
      " \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f,\n%s"
      " \"server_cpu_seconds\": %.6f, \"client_cpu_seconds\": %.6f, \"other_cpu_seconds\": "
      "%.2f}\n",
      static_cast<unsigned long long>(requests), seconds.passed,
      static_cast<double>(requests) / seconds.passed, latencies.percentile_us(50),
      latencies.percentile_us(99), latencies.percentile_us(99.9), latencies.max_us(), more.c_str(),
      seconds.server_cpu, seconds.own_cpu, seconds.other_cpu);
}

class LoadGenerator {
 public:
  explicit LoadGenerator(const Options& options)
      : options_(options),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)),
        read_buffer_(kReadSize),
        connections_(options.connections),
        random_(42),
        window_(options.server_pid) {
    if (options.tls) tls_context_ = make_tls_context();
    if (epoll_ < 0) fail_errno("epoll_create1");
  }

  void run() {
    open_all();
    const std::int64_t start = now_ns();
    const auto warmup = static_cast<std::int64_t>(options_.warmup * 1e9);
    const auto length = static_cast<std::int64_t>(options_.seconds * 1e9);
    start_all(start);
    drive_until(start + warmup);
    open_window();
    drive_until(window_.begin_ns() + length);
    if (open_loop()) count_unanswered(now_ns());
    print_figures();
  }

 private:
  [[nodiscard]] bool open_loop() const { return options_.rate > 0; }

  void open_all() {
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      Connection& connection = connections_[i];
      connection.number = i;
      if (options_.mode == Mode::kEcho) {
        connection.exchange = std::make_unique<EchoExchange>(i, options_.size);
      } else {
        connection.exchange = std::make_unique<HttpExchange>(options_.path, options_.body_size);
      }
      connection.fd = open_connection(options_);
      if (options_.tls) {
        connection.ssl = start_tls(*tls_context_, connection.fd, nullptr);
        if (::fcntl(connection.fd, F_SETFL, O_NONBLOCK) < 0) fail_errno("fcntl");
      }
      epoll_event event{.events = EPOLLIN, .data = {.ptr = &connection}};
      if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event) < 0) fail_errno("epoll_ctl");
    }
    for (std::size_t i = 0; i < options_.slow; ++i)
      slow_.emplace_back(options_);
  }

  void start_all(std::int64_t now) {
    for (Connection& connection : connections_) {
      if (open_loop()) {
        connection.next_due_ns = now + random_.gap_ns(mean_gap_ns());
        waiting_.emplace(connection.next_due_ns, connection.number);
      } else {
        start_request(connection, now);
      }
    }
  }

  void open_window() {
    latencies_.clear();
    for (Connection& connection : connections_)
      connection.completed = 0;
    window_.open();
  }

  void drive_until(std::int64_t end) {
    std::array<epoll_event, 256> events;
    for (std::int64_t now = now_ns(); now < end; now = now_ns()) {
      // Arrivals are due at instants no epoll time-out can hit, so the open loop spins: the client
      // has a core of its own.
      const std::int64_t tick_ns = slow_.empty() ? kTick_ns : kSlowPace_ns;
      const std::int64_t wait_ns = open_loop() ? 0 : std::min(end - now, tick_ns);
      const int wait_ms = static_cast<int>((wait_ns + 999'999) / 1'000'000);
      const int count =
          ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), wait_ms);
      if (count < 0 && errno != EINTR) fail_errno("epoll_wait");
      for (int i = 0; i < count; ++i) {
        const epoll_event& event = events[static_cast<std::size_t>(i)];
        Connection& connection = *static_cast<Connection*>(event.data.ptr);
        if ((event.events & EPOLLOUT) != 0) send_some(connection);
        if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) receive(connection);
      }
      if (open_loop()) start_due(now_ns());
      for (SlowConsumer& consumer : slow_)
        consumer.tick(now);
      check_stalls(now);
    }
  }

  // In an open loop a request that comes due while the one before it is unanswered waits its turn,
  // and the wait counts.
  void start_due(std::int64_t now) {
    while (!waiting_.empty() && waiting_.top().first <= now) {
      Connection& connection = connections_[waiting_.top().second];
      waiting_.pop();
      start_request(connection, connection.next_due_ns);
    }
  }

  void start_request(Connection& connection, std::int64_t due_ns) {
    connection.started_ns = due_ns;
    connection.in_flight = true;
    connection.unsent = connection.exchange->next_request();
    send_some(connection);
  }

  void send_some(Connection& connection) {
    while (!connection.unsent.empty()) {
      const std::size_t sent = send_once(connection);
      if (sent == 0) break;
      connection.unsent = connection.unsent.subspan(sent);
    }
    const bool wants_write = !connection.unsent.empty();
    if (wants_write == connection.wants_write) return;
    connection.wants_write = wants_write;
    epoll_event event{.events = wants_write ? EPOLLIN | EPOLLOUT : EPOLLIN,
                      .data = {.ptr = &connection}};
    if (::epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event) < 0) fail_errno("epoll_ctl");
  }

  // How many bytes went out; 0 when the kernel takes none now.
  std::size_t send_once(Connection& connection) {
    const Bytes data = connection.unsent;
    if (connection.ssl) {
      std::size_t sent = 0;
      if (::SSL_write_ex(connection.ssl.get(), data.data(), data.size(), &sent) == 1) return sent;
      if (::SSL_get_error(connection.ssl.get(), 0) != SSL_ERROR_WANT_WRITE) fail_tls("SSL_write");
      ::ERR_clear_error();
      return 0;
    }
    while (true) {
      const ssize_t sent =
          ::send(connection.fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent >= 0) return static_cast<std::size_t>(sent);
      if (errno == EAGAIN) return 0;
      if (errno != EINTR) fail_errno("send on connection " + std::to_string(connection.number));
    }
  }

  void receive(Connection& connection) {
    if (connection.ssl) return receive_tls(connection);
    const ssize_t got =
        ::recv(connection.fd, read_buffer_.data(), read_buffer_.size(), MSG_DONTWAIT);
    if (got < 0) {
      if (errno == EAGAIN || errno == EINTR) return;
      fail_errno("recv on connection " + std::to_string(connection.number));
    }
    received(connection, static_cast<std::size_t>(got));
  }

  // To the end of what is there: records that OpenSSL has read ahead make no descriptor readable.
  void receive_tls(Connection& connection) {
    std::size_t got = 0;
    while (::SSL_read_ex(connection.ssl.get(), read_buffer_.data(), read_buffer_.size(), &got) ==
           1) {
      received(connection, got);
    }
    const int error = ::SSL_get_error(connection.ssl.get(), 0);
    if (error == SSL_ERROR_ZERO_RETURN) received(connection, 0);
    if (error != SSL_ERROR_WANT_READ) fail_tls("SSL_read");
    ::ERR_clear_error();
  }

  void received(Connection& connection, std::size_t size) {
    if (size == 0) {
      throw Failure("the server closed connection " + std::to_string(connection.number));
    }
    if (!connection.in_flight) throw Failure("wrong bytes: an answer nobody asked for");
    if (connection.exchange->consume(Bytes(read_buffer_.data(), size))) complete(connection);
  }

  void complete(Connection& connection) {
    if (!connection.unsent.empty()) throw Failure("wrong bytes: an answer before the question");
    const std::int64_t now = now_ns();
    latencies_.add(now - connection.started_ns);
    ++connection.completed;
    connection.in_flight = false;
    if (!open_loop()) return start_request(connection, now);
    connection.next_due_ns += random_.gap_ns(mean_gap_ns());
    waiting_.emplace(connection.next_due_ns, connection.number);
  }

  // Left out, the requests that a server neglects most would make it look better.
  void count_unanswered(std::int64_t now) {
    for (Connection& connection : connections_) {
      if (!connection.in_flight) continue;
      latencies_.add(now - connection.started_ns);
      while ((connection.next_due_ns += random_.gap_ns(mean_gap_ns())) < now)
        latencies_.add(now - connection.next_due_ns);
    }
  }

  [[nodiscard]] double mean_gap_ns() const {
    return 1e9 * static_cast<double>(options_.connections) / options_.rate;
  }

  void check_stalls(std::int64_t now) {
    if (now < next_stall_check_ns_) return;
    next_stall_check_ns_ = now + kTick_ns;
    for (const Connection& connection : connections_) {
      if (!connection.in_flight) continue;
      if (now - connection.started_ns > kStall_ns) {
        throw Failure("no answer for 10 s on connection " + std::to_string(connection.number));
      }
    }
  }

  void print_figures() const {
    const Window::Seconds seconds = window_.seconds();
    std::uint64_t requests = 0;
    for (const Connection& connection : connections_)
      requests += connection.completed;
    const auto [least, most] = std::minmax_element(
        connections_.begin(), connections_.end(),
        [](const Connection& a, const Connection& b) { return a.completed < b.completed; });
    if (least->completed == 0 && !open_loop()) {
      throw Failure("connection " + std::to_string(least->number) + " got no answer in the window");
    }
    print_result(seconds, requests, latencies_,
                 " \"least_per_connection\": " + std::to_string(least->completed) +
                     ", \"most_per_connection\": " + std::to_string(most->completed) + ",\n");
  }

  const Options options_;
  const int epoll_;
  std::vector<char> read_buffer_;
  std::vector<Connection> connections_;
  std::vector<SlowConsumer> slow_;
  Random random_;
  Histogram latencies_;
  Window window_;
  std::int64_t next_stall_check_ns_ = 0;
  SslContext tls_context_;
  using Due = std::pair<std::int64_t, std::size_t>;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> waiting_;
};

// ---- handshakes ---------------------------------------------------------------------------------

// Threads that make one short connection after the other, so that the server always has some to
// answer while this side computes.
class HandshakeLoad {
 public:
  explicit HandshakeLoad(const Options& options)
      : options_(options), context_(make_tls_context()), window_(options.server_pid) {
    ::SSL_CTX_set_session_cache_mode(context_.get(), SSL_SESS_CACHE_CLIENT);
  }

  void run() {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < options_.connections; ++i)
      threads.emplace_back([this] { work(); });
    sleep_for(options_.warmup);
    open_window();
    sleep_for(options_.seconds);
    const Window::Seconds seconds = close_window();
    for (std::thread& thread : threads)
      thread.join();
    if (!problem_.empty()) throw Failure(problem_);
    if (done_ == 0) throw Failure("no connection ended in the window");
    print_result(seconds, done_, latencies_);
  }

 private:
  static void sleep_for(double seconds) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  }

  void open_window() {
    const std::lock_guard lock(mutex_);
    latencies_.clear();
    done_ = 0;
    window_.open();
  }

  // What ends after it counts no more.
  Window::Seconds close_window() {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    return window_.seconds();
  }

  void count(std::int64_t latency_ns) {
    const std::lock_guard lock(mutex_);
    if (stop_) return;
    ++done_;
    latencies_.add(latency_ns);
  }

  void work() {
    try {
      SslSession session;
      while (!stop_) {
        session = one(session.get());
      }
    } catch (const Failure& failure) {
      const std::lock_guard lock(mutex_);
      problem_ = failure.what();
    }
  }

  // One connection; its session, to be resumed by the next.
  SslSession one(SSL_SESSION* session) {
    const std::int64_t start = now_ns();
    const int fd = open_connection(options_);
    SslSession next;
    {
      const Ssl ssl = start_tls(*context_, fd, options_.resume ? session : nullptr);
      if (options_.resume && session != nullptr && ::SSL_session_reused(ssl.get()) != 1) {
        throw Failure("the server did not resume a session");
      }
      say_hello(*ssl);
      // With TLS 1.3 the ticket came with the first data.
      next.reset(::SSL_get1_session(ssl.get()));
      (void)::SSL_shutdown(ssl.get());
    }
    ::close(fd);
    count(now_ns() - start);
    return next;
  }

  // A message and its echo.
  static void say_hello(SSL& ssl) {
    std::array<char, 64> sent{};
    sent.fill('h');
    std::size_t size = 0;
    if (::SSL_write_ex(&ssl, sent.data(), sent.size(), &size) != 1) fail_tls("SSL_write");
    std::array<char, sent.size()> echoed{};
    for (std::size_t got = 0; got < echoed.size(); got += size) {
      if (::SSL_read_ex(&ssl, echoed.data() + got, echoed.size() - got, &size) != 1) {
        fail_tls("SSL_read");
      }
    }
    if (echoed != sent) throw Failure("wrong bytes: the echo after a handshake differs");
  }

  const Options options_;
  SslContext context_;
  // Guards what is below it; stop_ is also looked at without it.
  std::mutex mutex_;
  Window window_;
  std::uint64_t done_ = 0;
  Histogram latencies_;
  std::string problem_;
  std::atomic<bool> stop_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  // OpenSSL writes without MSG_NOSIGNAL.
  (void)std::signal(SIGPIPE, SIG_IGN);
  try {
    if (options.mode == Mode::kHandshake) {
      HandshakeLoad(options).run();
    } else {
      LoadGenerator(options).run();
    }
  } catch (const Failure& failure) {
    std::printf("{\"errors\": 1, \"error\": \"%s\"}\n", failure.what());
    return 1;
  }
}

#include <fcntl.h>

#include <cerrno>
#include <memory>
#include <string>

#include "core/net/datagram_socket.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/operations.h"

// A datagram socket on a scripted kernel, used as a transport uses it, with every callback of its
// owner doing more of the input's operations. Promised: datagrams leave whole, once and in order,
// and each is out, told to have failed, still queued or dropped by an abort; what comes is
// delivered once, in order and never to a paused socket; pause and resume alternate; the loss of
// the connection is due once; every owner of memory is released; every hold ends.

namespace {

using namespace cpploop;  // NOLINT(google-build-using-namespace): a program of one file.

constexpr std::size_t kHeader = 8;
constexpr unsigned kDatagramsLimit = 4000;

// The number, and as many letters behind it as make sizes differ.
[[nodiscard]] std::string datagram_of(unsigned number, std::size_t letters) {
  return std::to_string(number) + ":" + std::string(letters, 'd');
}

[[nodiscard]] unsigned number_of(const std::string& text) {
  return static_cast<unsigned>(std::stoul(text));
}

class Target final : public fuzz::EngineTarget, public DatagramEvents {
 public:
  explicit Target(fuzz::Operations& operations) : EngineTarget(operations) {
    const auto sizes =
        operations_.below(4) == 0 ? DatagramSocket::Sizes::any : DatagramSocket::Sizes::fit_a_slot;
    socket_ = std::make_unique<DatagramSocket>(
        engine_, UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), sizes, kHeader, *this);
    fd_ = socket_->fd();
    socket_->start_reading();
  }
  ~Target() override {
    FUZZ_CHECK(holds_ == 0);
    socket_.reset();
    FUZZ_CHECK(owners_ == 0);
  }

  void hold() noexcept override { ++holds_; }
  void release() noexcept override { --holds_; }
  void on_datagram(const Datagram& datagram) override {
    FUZZ_CHECK(socket_->receives());
    const std::string text(datagram.data, datagram.size);
    const unsigned number = number_of(text);
    FUZZ_CHECK(number > last_received_);
    last_received_ = number;
    ++received_;
    some_operations();
  }
  void on_receive_error(int) override { some_operations(); }
  void on_send_error(int) override {
    ++failed_;
    some_operations();
  }
  DatagramSent send_addressed(QueuedDatagram::Owner owner) override {
    const std::string bytes = *static_cast<std::string*>(owner);
    const IoResult result = socket_->send(bytes.data(), bytes.size(), nullptr);
    if (result.would_block()) {
      return DatagramSent::full;
    }
    if (!result.ok()) {
      on_send_error(result.error);
      return DatagramSent::failed;
    }
    some_operations();
    return DatagramSent::done;
  }
  void on_pause_writing() override {
    FUZZ_CHECK(!writing_paused_);
    FUZZ_CHECK(socket_->queued_size() > socket_->high_water());
    writing_paused_ = true;
    some_operations();
  }
  void on_resume_writing() override {
    FUZZ_CHECK(writing_paused_);
    FUZZ_CHECK(socket_->queued_size() <= socket_->low_water());
    writing_paused_ = false;
    some_operations();
  }
  void on_closed_after_flush() override {
    FUZZ_CHECK(socket_->queued().empty());
    lost_is_due();
  }
  void drop_owner(QueuedDatagram::Owner owner) noexcept override {
    --owners_;
    delete static_cast<std::string*>(owner);
  }

 private:
  void operation() override {
    switch (operations_.below(14)) {
      case 0:
      case 1:
      case 2:
        send(operations_.byte() * 8, operations_.below(2) == 0);
        break;
      case 3:
      case 4:
        for (std::size_t count = operations_.below(40); count > 0; --count) {
          backend_->bring_datagram(fd_, datagram_of(++brought_, operations_.below(32)));
        }
        break;
      case 5:
        if (operations_.below(4) == 0) {
          backend_->bring_error(fd_, ECONNREFUSED);
        }
        break;
      case 6:
        backend_->fail_send(fd_, operations_.below(2) == 0 ? EAGAIN : ECONNREFUSED);
        break;
      case 7:
        backend_->fill(fd_);
        break;
      case 8:
        backend_->make_room(fd_);
        break;
      case 9:
        (void)socket_->pause_reading();
        break;
      case 10:
        (void)socket_->resume_reading();
        break;
      case 11: {
        const std::size_t high = operations_.byte() * 8;
        socket_->set_limits(high, high / (1 + operations_.below(8)));
        break;
      }
      case 12:
        if (operations_.below(4) == 0 && socket_->close()) {
          lost_is_due();
        }
        break;
      default:
        if (operations_.below(16) == 0) {
          abort();
        }
        break;
    }
  }

  // As a transport's sendto().
  void send(std::size_t letters, bool addressed) {
    if (socket_->lost_count() != 0) {
      socket_->count_lost_write();
      return;
    }
    if (sent_ == kDatagramsLimit) {
      return;
    }
    const std::string bytes = datagram_of(++sent_, letters);
    if (socket_->sends_at_once()) {
      const IoResult result = socket_->send(bytes.data(), bytes.size(), nullptr);
      if (result.ok()) {
        return;
      }
      if (!result.would_block()) {
        on_send_error(result.error);
        return;
      }
      socket_->wait_for_kernel();
    }
    auto* owner = new std::string(bytes);
    ++owners_;
    socket_->queue({owner->data(), owner->size(), owner, addressed});
    socket_->maybe_pause_writing();
  }

  void abort() {
    aborted_ = true;
    if (socket_->force_close()) {
      lost_is_due();
    }
    FUZZ_CHECK(socket_->queued().empty());
  }

  void lost_is_due() {
    FUZZ_CHECK(!lost_);
    FUZZ_CHECK(socket_->is_closing());
    FUZZ_CHECK(socket_->lost_count() != 0);
    lost_ = true;
  }

  // Only between the input's operations: inside them a datagram may be neither here nor there.
  void check() override {
    const auto& out = backend_->sent_datagrams(fd_);
    for (; checked_ < out.size(); ++checked_) {
      const unsigned number = number_of(out[checked_]);
      FUZZ_CHECK(number > last_out_);
      last_out_ = number;
    }
    std::size_t queued_size = 0;
    for (const QueuedDatagram& item : socket_->queued()) {
      queued_size += item.size + kHeader;
    }
    FUZZ_CHECK(queued_size == socket_->queued_size());
    FUZZ_CHECK(static_cast<std::size_t>(owners_) == socket_->queued().size());
    FUZZ_CHECK(aborted_ || out.size() + failed_ + socket_->queued().size() == sent_);
    FUZZ_CHECK(lost_ == (socket_->lost_count() != 0));
    FUZZ_CHECK(writing_paused_ == socket_->writing_paused());
    FUZZ_CHECK(received_ <= brought_);
  }

  // With the input over nobody disturbs any more: what is queued must leave, what came must be
  // delivered, and a closing socket must end.
  void finish() override {
    (void)socket_->resume_reading();
    for (int i = 0; i < 100'000 && !settled(); ++i) {
      backend_->make_room(fd_);
      fuzz::turn(engine_, [] {});
    }
    fuzz::turn(engine_, [] {});
    check();
    FUZZ_CHECK(settled());
    FUZZ_CHECK(lost_ == socket_->is_closing());
  }

  [[nodiscard]] bool settled() const {
    return socket_->queued().empty() && holds_ == 0 &&
           (socket_->is_closing() || received_ + socket_->dropped() == brought_);
  }

  std::unique_ptr<DatagramSocket> socket_;
  int fd_ = -1;
  unsigned sent_ = 0;
  unsigned failed_ = 0;
  unsigned brought_ = 0;
  unsigned received_ = 0;
  unsigned last_received_ = 0;
  unsigned last_out_ = 0;
  std::size_t checked_ = 0;
  int owners_ = 0;
  int holds_ = 0;
  bool aborted_ = false;
  bool lost_ = false;
  bool writing_paused_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return cpploop::fuzz::run_input<Target>(data, size);
}

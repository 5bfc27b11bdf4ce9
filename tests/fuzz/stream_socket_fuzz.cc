#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "core/net/stream_socket.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/operations.h"

// A stream socket on a scripted kernel, used as a transport uses it, with every callback of its
// owner doing more of the input's operations. Promised: what the peer gets is a prefix of what was
// written, and all of it when nothing failed and nobody aborted; pause and resume alternate; the
// loss of the connection is due once; every owner of bytes is released; every hold ends.

namespace {

using namespace cpploop;  // NOLINT(google-build-using-namespace): a program of one file.

constexpr std::size_t kBytesLimit = 1 << 20;

class Target final : public fuzz::EngineTarget, public StreamEvents {
 public:
  explicit Target(fuzz::Operations& operations)
      : EngineTarget(operations),
        socket_(std::make_unique<StreamSocket>(
            engine_, UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)), *this)),
        fd_(socket_->fd()) {
    socket_->start_reading();
  }
  ~Target() override {
    socket_.reset();
    FUZZ_CHECK(owners_ == 0);
    FUZZ_CHECK(holds_ == 0);
  }

  void hold() noexcept override { ++holds_; }
  void release() noexcept override { --holds_; }
  ReceiveBuffer receive_buffer() override {
    if (operations_.below(16) == 15) {
      operation();
    }
    return {buffer_.data(), std::min(buffer_.size(), socket_->receive_size())};
  }
  void on_bytes(std::size_t count) override {
    FUZZ_CHECK(count <= buffer_.size());
    if (count != 0) {
      some_operations();
    }
  }
  void on_end_of_stream() override {
    socket_->stop_reading_at_end();
    some_operations();
  }
  void on_receive_error(int) override { abort(); }
  void on_shutdown_error(int) override {}
  void on_send_error(int) override {
    broken_ = true;
    abort();
    some_operations();
  }
  void on_pause_writing() override {
    FUZZ_CHECK(!writing_paused_);
    FUZZ_CHECK(socket_->queued_bytes() > socket_->high_water());
    writing_paused_ = true;
    some_operations();
  }
  void on_resume_writing() override {
    FUZZ_CHECK(writing_paused_);
    FUZZ_CHECK(socket_->queued_bytes() <= socket_->low_water());
    writing_paused_ = false;
    some_operations();
  }
  void on_drained() override {
    FUZZ_CHECK(socket_->queued_bytes() == 0);
    some_operations();
  }
  void on_closed_after_flush() override {
    FUZZ_CHECK(socket_->queued_bytes() == 0);
    lost_is_due();
  }
  void drop_owner(WriteQueue::Owner owner) noexcept override {
    --owners_;
    delete static_cast<std::string*>(owner);
  }

 private:
  void operation() override {
    switch (operations_.below(16)) {
      case 0:
      case 1:
        write(1 + operations_.below(8), 1);
        break;
      case 2:
        write(1 + operations_.byte() * 400, 1);
        break;
      case 3:
        write(1 + operations_.below(100), 1 + operations_.below(8));
        break;
      case 4:
        backend_->limit_send(fd_, 1 + operations_.byte() * 16);
        break;
      case 5:
        if (operations_.below(4) == 0) {
          backend_->fail_send(fd_, operations_.below(2) == 0 ? EPIPE : EAGAIN);
        }
        break;
      case 6:
        backend_->fill(fd_);
        break;
      case 7:
        backend_->make_room(fd_);
        break;
      case 8:
        backend_->bring(fd_, std::string(1 + operations_.byte() * 100, 'r'));
        break;
      case 9:
        if (operations_.below(4) == 0) {
          operations_.below(2) == 0 ? backend_->bring_end(fd_)
                                    : backend_->bring_error(fd_, ECONNRESET);
        }
        break;
      case 10:
        (void)socket_->pause_reading();
        break;
      case 11:
        (void)socket_->resume_reading();
        break;
      case 12: {
        const std::size_t high = operations_.byte() * 8;
        socket_->set_limits(high, high / (1 + operations_.below(8)));
        break;
      }
      case 13:
        socket_->flush();
        break;
      case 14:
        if (operations_.below(2) == 0) {
          (void)socket_->write_eof();
        } else if (socket_->close()) {
          lost_is_due();
        }
        break;
      default:
        if (operations_.below(8) == 0) {
          abort();
        }
        break;
    }
  }

  // As a transport writes: nothing after the end, and what the kernel does not take is copied.
  void write(std::size_t size, std::size_t pieces) {
    if (socket_->eof_written() || written_.size() + size > kBytesLimit) {
      return;
    }
    if (socket_->lost_count() != 0) {
      socket_->count_lost_write();
      return;
    }
    std::string bytes(size, '\0');
    std::generate(bytes.begin(), bytes.end(), [this] { return static_cast<char>(next_byte_++); });
    written_ += bytes;
    std::size_t done = socket_->begin_write(bytes.data(), bytes.size());
    FUZZ_CHECK(done <= size);
    if (done == size || socket_->lost_count() != 0) {
      return;
    }
    const std::size_t piece = std::max<std::size_t>(1, (size - done) / pieces);
    for (; done < size; done += std::min(piece, size - done)) {
      auto* owner = new std::string(bytes.substr(done, std::min(piece, size - done)));
      ++owners_;
      socket_->queue(owner->data(), owner->size(), owner);
    }
    socket_->end_write();
  }

  void abort() {
    broken_ = broken_ || socket_->queued_bytes() != 0;
    if (socket_->force_close()) {
      lost_is_due();
    }
    FUZZ_CHECK(socket_->queued_bytes() == 0);
  }

  void lost_is_due() {
    FUZZ_CHECK(!lost_);
    FUZZ_CHECK(socket_->is_closing());
    FUZZ_CHECK(socket_->lost_count() != 0);
    lost_ = true;
  }

  void check() override {
    const std::string& sent = backend_->sent(fd_);
    FUZZ_CHECK(written_.compare(0, sent.size(), sent) == 0);
    FUZZ_CHECK(broken_ || sent.size() + socket_->queued_bytes() == written_.size());
    FUZZ_CHECK(lost_ == (socket_->lost_count() != 0));
    FUZZ_CHECK(writing_paused_ == socket_->writing_paused());
    FUZZ_CHECK(static_cast<std::size_t>(owners_) <= socket_->queued_bytes());
    FUZZ_CHECK(holds_ == 0);
  }

  // With the input over nobody disturbs any more: what is queued must leave, and a closing
  // connection must end.
  void finish() override {
    for (int i = 0; i < 100'000 && socket_->queued_bytes() != 0; ++i) {
      backend_->make_room(fd_);
      fuzz::turn(engine_, [] {});
    }
    fuzz::turn(engine_, [] {});
    check();
    FUZZ_CHECK(socket_->queued_bytes() == 0);
    FUZZ_CHECK(lost_ == socket_->is_closing());
    FUZZ_CHECK(lost_ || !writing_paused_);
  }

  std::unique_ptr<StreamSocket> socket_;
  int fd_;
  std::vector<char> buffer_ = std::vector<char>(64 * 1024);
  std::string written_;
  unsigned next_byte_ = 0;
  int owners_ = 0;
  int holds_ = 0;
  bool broken_ = false;  // Something was lost, by an error or an abort.
  bool lost_ = false;
  bool writing_paused_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return cpploop::fuzz::run_input<Target>(data, size);
}

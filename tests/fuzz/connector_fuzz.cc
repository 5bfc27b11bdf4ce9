#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <vector>

#include "core/net/connector.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/operations.h"

// Connections under way on a scripted kernel, whose outcomes start, cancel and destroy others.
// Promised: each outcome is told once and as it is; nothing is told after a cancel, not even when
// the kernel's event is delivered late or the number is another file's by then.

namespace {

using namespace cpploop;  // NOLINT(google-build-using-namespace): a program of one file.

constexpr int kFirstFd = 100;  // The scripted kernel asks for no open descriptor.

class Attempts;

// One descriptor of the program, and the connection that may be under way on it.
class Attempt final : public ConnectSink {
 public:
  void place(Attempts& attempts, int fd) {
    attempts_ = &attempts;
    fd_ = fd;
  }

  void start(ScriptedBackend& backend, int at_once);
  void finish_with(ScriptedBackend& backend, int error) {
    if (pending_ && !outcome_) {
      outcome_ = error;
      backend.finish_connect_with(fd_, error);
    }
  }
  void cancel(ScriptedBackend& backend);
  [[nodiscard]] bool pending() const { return pending_; }
  // The identity of a connection that was cancelled: its event is stale.
  [[nodiscard]] std::optional<ChannelId> stale() const { return stale_; }

  void hold() noexcept override { ++holds_; }
  void release() noexcept override { --holds_; }
  void on_connected(int error) override;

  void check_idle() const { FUZZ_CHECK(holds_ == 0); }

 private:
  Attempts* attempts_ = nullptr;
  int fd_ = -1;
  std::unique_ptr<Connector> connector_;
  std::optional<ChannelId> stale_;
  std::optional<int> outcome_;
  bool pending_ = false;
  int holds_ = 0;
};

class Attempts final : public fuzz::EngineTarget {
 public:
  explicit Attempts(fuzz::Operations& operations) : EngineTarget(operations) {
    for (std::size_t i = 0; i < attempts_.size(); ++i) {
      attempts_[i].place(*this, kFirstFd + static_cast<int>(i));
    }
  }

 private:
  void operation() override {
    Attempt& attempt = attempts_[operations_.below(attempts_.size())];
    switch (operations_.below(6)) {
      case 0:
        attempt.start(*backend_, EINPROGRESS);
        break;
      case 1:
        attempt.start(*backend_, operations_.below(2) == 0 ? 0 : ECONNREFUSED);
        break;
      case 2:
      case 3:
        attempt.finish_with(*backend_, operations_.below(2) == 0 ? 0 : ETIMEDOUT);
        break;
      case 4:
        attempt.cancel(*backend_);
        break;
      default:
        deliver_late();
        break;
    }
  }

  // The next poll brings nothing but events of connections that are over.
  void deliver_late() {
    std::vector<ScriptedBackend::Event> events;
    for (const Attempt& attempt : attempts_) {
      if (attempt.stale()) {
        events.push_back({*attempt.stale(), kIoWritable});
      }
    }
    backend_->next_poll({.events = std::move(events)});
  }

  void finish() override {
    for (Attempt& attempt : attempts_) {
      attempt.finish_with(*backend_, 0);
    }
    // With the input over no outcome starts anything new; late polls may be in the way.
    for (int i = 0; i < 100'000 && any_pending(); ++i) {
      fuzz::turn(engine_, [] {});
    }
    FUZZ_CHECK(!any_pending());
    for (Attempt& attempt : attempts_) {
      attempt.cancel(*backend_);
      attempt.check_idle();
    }
    FUZZ_CHECK(engine_.backend().attached_count() == 0);
  }

  [[nodiscard]] bool any_pending() const {
    for (const Attempt& attempt : attempts_) {
      if (attempt.pending()) {
        return true;
      }
    }
    return false;
  }

  std::array<Attempt, 4> attempts_;
};

// As a socket that is closed and made again: the number stays, the file is another.
void Attempt::start(ScriptedBackend& backend, int at_once) {
  cancel(backend);
  backend.reuse_number(fd_);
  backend.answer_connect(fd_, at_once);
  connector_ = std::make_unique<Connector>(backend);
  const int error = connector_->start(fd_, os::SocketAddress{}, *this);
  FUZZ_CHECK(error == at_once);
  pending_ = error == EINPROGRESS;
}

void Attempt::cancel(ScriptedBackend& backend) {
  if (pending_) {
    stale_ = backend.id_of(fd_);
  }
  pending_ = false;
  outcome_.reset();
  connector_.reset();
}

void Attempt::on_connected(int error) {
  FUZZ_CHECK(pending_);
  FUZZ_CHECK(outcome_ == error);
  FUZZ_CHECK(holds_ == 1);
  pending_ = false;
  outcome_.reset();
  attempts_->some_operations();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return cpploop::fuzz::run_input<Attempts>(data, size);
}

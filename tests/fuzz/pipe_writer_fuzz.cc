#include <algorithm>
#include <cerrno>
#include <deque>
#include <string>

#include "core/backend/scripted_backend.h"
#include "core/net/pipe_writer.h"
#include "tests/fuzz/operations.h"

// A pipe's writer on a scripted kernel: what the kernel has and what is queued are together what
// was written, in order; each owner is released once, in order, and not before its last byte is
// out.

namespace {

using namespace cpploop;  // NOLINT(google-build-using-namespace): a program of one file.

constexpr int kFd = 100;
constexpr std::size_t kBytesLimit = 1 << 20;

class Target {
 public:
  explicit Target(fuzz::Operations& operations) : operations_(operations) {
    backend_.set_recording(false);
  }

  void run() {
    while (!operations_.over()) {
      operation();
      check();
    }
    clear();
    check();
    FUZZ_CHECK(pieces_.empty());
  }

 private:
  // Bytes in the queue, kept alive until their owner is released.
  struct Piece {
    std::string bytes;
    std::size_t end;  // Where it ends in all that was written.
  };

  void operation() {
    switch (operations_.below(10)) {
      case 0:
      case 1:
        write(1 + operations_.byte(), 1);
        break;
      case 2:
        // More pieces than one call takes.
        write(1 + operations_.byte() * 8, 1 + operations_.byte() * 4);
        break;
      case 3:
      case 4:
      case 5:
        write_queued();
        break;
      case 6:
        backend_.limit_send(kFd, 1 + operations_.byte() * 4);
        break;
      case 7:
        backend_.fail_send(kFd, operations_.below(2) == 0 ? EPIPE : EAGAIN);
        break;
      case 8:
        operations_.below(2) == 0 ? backend_.fill(kFd) : backend_.make_room(kFd);
        break;
      default:
        if (operations_.below(8) == 0) {
          clear();
        }
        break;
    }
  }

  // As the transport does: at once when nothing is queued, and the rest into the queue.
  void write(std::size_t size, std::size_t pieces) {
    if (written_.size() + size > kBytesLimit) {
      return;
    }
    std::string bytes(size, '\0');
    std::generate(bytes.begin(), bytes.end(), [this] { return static_cast<char>(next_byte_++); });
    const std::size_t begin = written_.size();
    written_ += bytes;
    std::size_t done = 0;
    if (writer_.empty()) {
      const IoResult result = writer_.write(kFd, bytes.data(), bytes.size());
      if (!result.ok()) {
        written_.resize(begin);  // It failed as a whole.
        return;
      }
      done = static_cast<std::size_t>(result.value);
    }
    const std::size_t step = std::max<std::size_t>(1, (size - done) / pieces);
    for (; done < size; done += std::min(step, size - done)) {
      queue(bytes.substr(done, std::min(step, size - done)), begin + done);
    }
  }

  void queue(std::string bytes, std::size_t begin) {
    const std::size_t end = begin + bytes.size();
    Piece& piece = pieces_.emplace_back(std::move(bytes), end);
    writer_.queue(piece.bytes.data(), piece.bytes.size(), &piece);
  }

  void write_queued() {
    if (writer_.empty()) {
      return;
    }
    const std::size_t before = writer_.size_bytes();
    const IoResult result = writer_.write_queued(kFd, [this](WriteQueue::Owner owner) {
      FUZZ_CHECK(pieces_.front().end <= backend_.sent(kFd).size());
      release(owner);
    });
    const std::size_t taken = result.ok() ? static_cast<std::size_t>(result.value) : 0;
    FUZZ_CHECK(writer_.size_bytes() + taken == before);
  }

  void clear() {
    writer_.clear([this](WriteQueue::Owner owner) { release(owner); });
    FUZZ_CHECK(writer_.empty());
    written_.resize(backend_.sent(kFd).size());
  }

  void release(WriteQueue::Owner owner) {
    FUZZ_CHECK(!pieces_.empty() && owner == &pieces_.front());
    pieces_.pop_front();
  }

  void check() {
    const std::string& sent = backend_.sent(kFd);
    FUZZ_CHECK(sent.size() + writer_.size_bytes() == written_.size());
    FUZZ_CHECK(written_.compare(0, sent.size(), sent) == 0);
    FUZZ_CHECK(writer_.empty() == pieces_.empty());
  }

  fuzz::Operations& operations_;
  ScriptedBackend backend_;
  PipeWriter writer_{backend_};
  std::deque<Piece> pieces_;
  std::string written_;
  unsigned next_byte_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return cpploop::fuzz::run_input<Target>(data, size);
}

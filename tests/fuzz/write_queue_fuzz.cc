#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <vector>

#include "core/net/write_queue.h"
#include "tests/fuzz/operations.h"

// The write queue against a string: the same bytes in the same order, and each owner released once,
// in order, and not before its last byte is out.

namespace {

using cpploop::WriteQueue;

class Target {
 public:
  void push(std::size_t at, std::size_t size) {
    queue_.push(kSource.data() + at, size,
                reinterpret_cast<WriteQueue::Owner>(static_cast<std::uintptr_t>(++pushed_)));
    model_.append(kSource, at, size);
    bytes_pushed_ += size;
    ends_.push_back(bytes_pushed_);
  }

  void advance(std::size_t sent) {
    sent = std::min(sent, model_.size());
    bytes_sent_ += sent;
    queue_.advance(sent, [this](WriteQueue::Owner owner) {
      release(owner);
      FUZZ_CHECK(ends_[released_ - 1] <= bytes_sent_);
    });
    model_.erase(0, sent);
    FUZZ_CHECK(released_ == pushed_ || ends_[released_] > bytes_sent_);
  }

  void clear() {
    queue_.clear([this](WriteQueue::Owner owner) { release(owner); });
    FUZZ_CHECK(released_ == pushed_);
    bytes_sent_ = bytes_pushed_;
    model_.clear();
  }

  void check(std::size_t room) const {
    FUZZ_CHECK(queue_.size_bytes() == model_.size());
    FUZZ_CHECK(queue_.empty() == model_.empty());
    std::array<iovec, 16> parts{};
    const auto gathered = queue_.gather(std::span(parts).first(room % (parts.size() + 1)));
    std::string front;
    for (const iovec& part : gathered) {
      FUZZ_CHECK(part.iov_len > 0);
      front.append(static_cast<const char*>(part.iov_base), part.iov_len);
    }
    FUZZ_CHECK(model_.compare(0, front.size(), front) == 0);
  }

 private:
  static inline const std::string kSource =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

  void release(WriteQueue::Owner owner) {
    ++released_;
    FUZZ_CHECK(reinterpret_cast<std::uintptr_t>(owner) == released_);
  }

  WriteQueue queue_;
  std::string model_;
  std::vector<std::size_t> ends_;
  std::size_t pushed_ = 0;
  std::size_t released_ = 0;
  std::size_t bytes_pushed_ = 0;
  std::size_t bytes_sent_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  cpploop::fuzz::Operations operations(data, size);
  Target target;
  while (!operations.over()) {
    switch (operations.below(8)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const std::size_t at = operations.below(62);
        target.push(at, 1 + operations.below(62 - at));
        break;
      }
      case 4:
      case 5:
      case 6:
        target.advance(operations.byte());
        break;
      default:
        if (operations.below(8) == 0) {
          target.clear();
        }
        break;
    }
    target.check(operations.byte());
  }
  target.clear();
  target.check(16);
  return 0;
}

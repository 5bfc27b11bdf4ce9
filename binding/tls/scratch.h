#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "binding/tls/tls_session.h"

namespace cpploop {

// A loop's memory for plaintext and ciphertext on their way through: one of each for all of its
// connections. Pages that were never written cost nothing. And the few connections that may keep
// larger buffers of OpenSSL's, because they were busy last. Belongs to the loop's thread.
class TlsScratch {
 public:
  // As much ciphertext as one read brings, and what may be waiting inside OpenSSL.
  static constexpr std::size_t kPlaintextSize = 288 * 1024;
  static constexpr std::size_t kCiphertextSize = 256 * 1024;

  // Memory of at least `size` bytes for as long as the lease lives: the shared piece, or one of its
  // own where a callback came in between and the shared one is in use further up. False where there
  // is no memory.
  class Lease {
   public:
    ~Lease() {
      if (busy_ != nullptr) {
        *busy_ = false;
      }
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    [[nodiscard]] explicit operator bool() const noexcept { return data_ != nullptr; }
    [[nodiscard]] char* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

   private:
    friend class TlsScratch;
    Lease(std::unique_ptr<char[]>& shared, bool& busy, std::size_t size) noexcept : size_(size) {
      if (busy) {
        own_.reset(new (std::nothrow) char[size]);
        data_ = own_.get();
        return;
      }
      if (shared == nullptr) {
        shared.reset(new (std::nothrow) char[size]);
        if (shared == nullptr) {
          return;
        }
      }
      data_ = shared.get();
      busy_ = &busy;
      busy = true;
    }

    std::unique_ptr<char[]> own_;
    char* data_ = nullptr;
    std::size_t size_;
    bool* busy_ = nullptr;
  };

  [[nodiscard]] Lease plaintext() noexcept { return {plaintext_, plaintext_busy_, kPlaintextSize}; }
  [[nodiscard]] Lease ciphertext() noexcept {
    return {ciphertext_, ciphertext_busy_, kCiphertextSize};
  }

  // A connection's session was used. When it has grown, it takes the place of the one that grew
  // longest ago, which gives its memory back.
  void note_use(const std::shared_ptr<TlsSession>& session) noexcept {
    if (session == nullptr || session->listed || !session->swollen()) {
      return;
    }
    session->listed = true;
    const std::shared_ptr<TlsSession> oldest = swollen_[next_].lock();
    swollen_[next_] = session;
    next_ = (next_ + 1) % swollen_.size();
    if (oldest != nullptr) {
      oldest->listed = false;
      oldest->settle();
    }
  }

 private:
  static constexpr std::size_t kSwollenMax = 64;

  std::array<std::weak_ptr<TlsSession>, kSwollenMax> swollen_;
  std::size_t next_ = 0;
  std::unique_ptr<char[]> plaintext_;
  std::unique_ptr<char[]> ciphertext_;
  bool plaintext_busy_ = false;
  bool ciphertext_busy_ = false;
};

}  // namespace cpploop

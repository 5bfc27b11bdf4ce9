#pragma once

#include <span>

namespace cpploop::tls {

// Stands between OpenSSL and the two memory BIOs of a connection, and spares the way through them:
// memory BIOs copy what is written into them and clear the memory before. Ciphertext from the peer
// is read where it was received, and ciphertext for the peer is written where it will be sent from.
// Outside of those calls, and for everybody else's, the memory BIOs are what they are without it.
class BioTap {
 public:
  BioTap() = default;
  BioTap(const BioTap&) = delete;
  BioTap& operator=(const BioTap&) = delete;
  // Before the connection is given up.
  ~BioTap();

  // Puts itself before the BIOs of this connection. Without memory it stays out, and nothing has
  // changed.
  void install(void* ssl, void* incoming_bio, void* outgoing_bio) noexcept;
  [[nodiscard]] bool installed() const noexcept { return reading_ != nullptr; }

  // For the length of one call of OpenSSL's.
  class Lent {
   public:
    // `incoming` is read while the memory BIO is empty, and becomes shorter.
    Lent(BioTap& tap, std::span<const char>& incoming) noexcept : tap_(tap) {
      tap_.incoming_ = &incoming;
    }
    // `room` is written to while the memory BIO is empty, and becomes smaller.
    Lent(BioTap& tap, std::span<char>& room) noexcept : tap_(tap) { tap_.room_ = &room; }
    ~Lent() {
      tap_.incoming_ = nullptr;
      tap_.room_ = nullptr;
    }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;

   private:
    BioTap& tap_;
  };

 private:
  [[nodiscard]] static void* put_before(void* memory_bio, BioTap* tap) noexcept;

  static int read(void* bio, char* into, int size);
  static int write(void* bio, const char* data, int size);
  static long control(void* bio, int command, long number, void* object);
  [[nodiscard]] static void* method() noexcept;

  std::span<const char>* incoming_ = nullptr;
  std::span<char>* room_ = nullptr;
  // The connection's, as long as it lives.
  void* reading_ = nullptr;
  void* writing_ = nullptr;
};

}  // namespace cpploop::tls

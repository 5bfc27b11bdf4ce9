#pragma once

#include <cstddef>
#include <span>

namespace cpploop::tls {

// Stands between OpenSSL and the two memory BIOs of a connection, and spares the way through them:
// memory BIOs copy what is written into them and clear the memory before. Ciphertext from the peer
// is read where it was received, and ciphertext for the peer is written where it will be sent from.
// Outside of those calls, and for everybody else's, the memory BIOs are what they are without it.
//
// An empty memory BIO that nobody else can reach stays empty until something goes into it by way of
// this class, and is not looked at: with many connections a look costs more in cache misses than in
// instructions.
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

  // What waits in the memory BIOs.
  [[nodiscard]] std::size_t incoming() noexcept {
    return waiting_in(incoming_bio_, incoming_empty_);
  }
  [[nodiscard]] std::size_t outgoing() noexcept {
    return waiting_in(outgoing_bio_, outgoing_empty_);
  }
  // Something is about to be put into the memory BIO for what comes in.
  void feeds() noexcept { incoming_empty_ = false; }
  // Somebody else can reach the memory BIOs from now on.
  void expose() noexcept {
    exposed_ = true;
    incoming_empty_ = false;
    outgoing_empty_ = false;
  }

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
  [[nodiscard]] std::size_t waiting_in(void* memory_bio, bool& known_empty) noexcept {
    return known_empty ? 0 : look_into(memory_bio, known_empty);
  }
  [[nodiscard]] std::size_t look_into(void* memory_bio, bool& known_empty) const noexcept;
  [[nodiscard]] static void* put_before(void* memory_bio, BioTap* tap) noexcept;

  static int read(void* bio, char* into, int size);
  static int write(void* bio, const char* data, int size);
  static long control(void* bio, int command, long number, void* object);
  [[nodiscard]] static void* method() noexcept;

  std::span<const char>* incoming_ = nullptr;
  std::span<char>* room_ = nullptr;
  // The connection's, as long as it lives.
  void* incoming_bio_ = nullptr;
  void* outgoing_bio_ = nullptr;
  void* reading_ = nullptr;
  void* writing_ = nullptr;
  bool incoming_empty_ = false;
  bool outgoing_empty_ = false;
  bool exposed_ = false;
};

}  // namespace cpploop::tls

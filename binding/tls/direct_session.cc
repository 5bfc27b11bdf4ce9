// Tier 1: the same SSLObject, with OpenSSL's functions called at once on the connection inside it.
// Contexts, callbacks, verification, sessions and errors stay CPython's: whatever is not the plain
// case is handed to the object's own method, which finds OpenSSL as it was left and says the rest.

#include <algorithm>
#include <climits>
#include <cstdint>

#include "binding/tls/bio_session.h"
#include "binding/tls/bio_tap.h"
#include "binding/tls/openssl.h"

namespace cpploop {
namespace {

using tls::openssl;

[[nodiscard]] int as_int(std::size_t size) noexcept {
  return static_cast<int>(std::min<std::size_t>(size, INT_MAX));
}

class DirectSession final : public BioSession {
 public:
  using BioSession::BioSession;

  // False, without an error, when this connection does not pass the gates.
  [[nodiscard]] bool reach_inside() {
    if (!plain() || !tls::knows_socket_size(Py_TYPE(ssl_socket())->tp_basicsize)) {
      return false;
    }
    ssl_ = tls::connection_of(ssl_socket());
    if (ssl_ == nullptr) {
      return false;
    }
    incoming_bio_ = openssl().get_rbio(ssl_);
    outgoing_bio_ = openssl().get_wbio(ssl_);
    if (incoming_bio_ == nullptr || outgoing_bio_ == nullptr) {
      return false;
    }
    tap_.install(ssl_, incoming_bio_, outgoing_bio_);
    return true;
  }

  [[nodiscard]] bool feed(const char* data, std::size_t size) override;
  [[nodiscard]] bool reads_in_place() const noexcept override { return tap_.installed(); }
  [[nodiscard]] Result read(char* into, std::size_t size, std::span<const char>& received) override;
  [[nodiscard]] Result write(const char* data, std::size_t size, std::span<char>& room) override;
  [[nodiscard]] Py_ssize_t drain(char* into, std::size_t size) override;
  [[nodiscard]] Py_ssize_t incoming() override { return static_cast<Py_ssize_t>(tap_.incoming()); }
  [[nodiscard]] Py_ssize_t outgoing() override { return static_cast<Py_ssize_t>(tap_.outgoing()); }
  [[nodiscard]] bool nothing_outgoing() noexcept override { return tap_.outgoing() == 0; }
  void expose() noexcept override { tap_.expose(); }
  [[nodiscard]] bool swollen() const noexcept override {
    return std::max(largest_fed_, largest_sealed_) > kKeptBuffer;
  }
  void settle() noexcept override;

 private:
  // What an idle connection's BIO may keep: a request, a small response.
  static constexpr std::size_t kKeptBuffer = 4 * 1024;

  static void shrink(void* bio, std::size_t& largest) noexcept;

  // All three belong to the _ssl._SSLSocket, which the base holds.
  void* ssl_ = nullptr;
  void* incoming_bio_ = nullptr;
  void* outgoing_bio_ = nullptr;
  tls::BioTap tap_;
  // The most that either BIO held since its buffer was exchanged; with the handshake's flights.
  std::size_t largest_fed_ = SIZE_MAX;
  std::size_t largest_sealed_ = SIZE_MAX;
};

// A memory BIO's buffer only ever grows. An empty one's is exchanged for a new one, which takes no
// memory until it is written to.
void DirectSession::shrink(void* bio, std::size_t& largest) noexcept {
  if (largest <= kKeptBuffer || openssl().bio_pending(bio) != 0) {
    return;
  }
  void* fresh = openssl().new_buffer();
  if (fresh != nullptr) {
    (void)openssl().bio_ctrl(bio, tls::kSetBuffer, tls::kCloseBuffer, fresh);
    largest = 0;
  }
}

void DirectSession::settle() noexcept {
  shrink(incoming_bio_, largest_fed_);
  shrink(outgoing_bio_, largest_sealed_);
}

bool DirectSession::feed(const char* data, std::size_t size) {
  largest_fed_ = std::max(largest_fed_, size);
  bool ok = true;
  // The object's Python methods take the same lock on a free-threaded build.
  Py_BEGIN_CRITICAL_SECTION(ssl_socket());
  tap_.feeds();
  while (size > 0 && ok) {
    const int taken = openssl().bio_write(incoming_bio_, data, as_int(size));
    ok = taken > 0;
    if (ok) {
      data += taken;
      size -= static_cast<std::size_t>(taken);
    }
  }
  Py_END_CRITICAL_SECTION();
  if (!ok) {
    openssl().clear_errors();
    PyErr_NoMemory();  // The only thing that a memory BIO can lack.
  }
  return ok;
}

TlsSession::Result DirectSession::read(char* into, std::size_t size,
                                       std::span<const char>& received) {
  int count = 0;
  int error = 0;
  bool closed = false;
  Py_BEGIN_CRITICAL_SECTION(ssl_socket());
  openssl().clear_errors();
  {
    const tls::BioTap::Lent lent(tap_, received);
    count = openssl().read(ssl_, into, as_int(size));
  }
  if (count <= 0) {
    error = openssl().get_error(ssl_, count);
    closed =
        error == tls::kErrorZeroReturn && openssl().get_shutdown(ssl_) == tls::kReceivedShutdown;
  }
  Py_END_CRITICAL_SECTION();
  if (PyErr_Occurred() != nullptr) [[unlikely]] {
    return {Outcome::failed, 0};  // A callback of the context's raised.
  }
  if (count > 0) {
    return {Outcome::done, static_cast<std::size_t>(count)};
  }
  if (error == tls::kErrorWantRead) {
    return {Outcome::again, 0};
  }
  if (closed) {
    return {Outcome::closed, 0};
  }
  // OpenSSL's error queue is as it was left: the method meets the same error and raises it in its
  // own words.
  return BioSession::read(into, size, received);
}

TlsSession::Result DirectSession::write(const char* data, std::size_t size, std::span<char>& room) {
  const std::size_t roomy = room.size();
  int count = 0;
  int error = 0;
  Py_BEGIN_CRITICAL_SECTION(ssl_socket());
  openssl().clear_errors();
  {
    const tls::BioTap::Lent lent(tap_, room);
    count = openssl().write(ssl_, data, as_int(size));
  }
  if (room.size() == roomy) {
    largest_sealed_ = std::max(largest_sealed_, size);
  }
  if (count <= 0) {
    error = openssl().get_error(ssl_, count);
  }
  Py_END_CRITICAL_SECTION();
  if (PyErr_Occurred() != nullptr) [[unlikely]] {
    return {Outcome::failed, 0};
  }
  if (count > 0) {
    return {Outcome::done, static_cast<std::size_t>(count)};
  }
  if (error == tls::kErrorWantRead) {
    return {Outcome::again, 0};
  }
  return BioSession::write(data, size, room);
}

Py_ssize_t DirectSession::drain(char* into, std::size_t size) {
  std::size_t total = 0;
  Py_BEGIN_CRITICAL_SECTION(ssl_socket());
  while (total < size) {
    const int count = openssl().bio_read(outgoing_bio_, into + total, as_int(size - total));
    if (count <= 0) {
      break;  // Empty.
    }
    total += static_cast<std::size_t>(count);
  }
  Py_END_CRITICAL_SECTION();
  return static_cast<Py_ssize_t>(total);
}

}  // namespace

std::shared_ptr<TlsSession> open_direct_session(ModuleState& state, const TlsObjects& objects) {
  auto session = std::make_shared<DirectSession>(state);
  if (!session->open(objects) || !session->reach_inside()) {
    return nullptr;
  }
  return session;
}

}  // namespace cpploop

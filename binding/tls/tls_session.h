#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "binding/module_state.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// One TLS connection between its two memory BIOs: ciphertext in, plaintext out, and the other way
// round. Handshake and closing are not here: they stay calls of the SSLObject's own methods, for
// their exceptions. Belongs to the loop's thread.
class TlsSession {
 public:
  enum class Outcome : std::uint8_t {
    done,    // `count` bytes.
    again,   // More ciphertext is needed first.
    closed,  // The peer said that nothing more comes.
    failed,  // The Python error is set.
  };
  struct Result {
    Outcome outcome;
    std::size_t count;
  };

  TlsSession() = default;
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;
  virtual ~TlsSession() = default;

  // Takes ciphertext from the peer. False with the Python error set.
  [[nodiscard]] virtual bool feed(const char* data, std::size_t size) = 0;
  // Whether read() takes ciphertext from where it was received, once what was fed is used up.
  [[nodiscard]] virtual bool reads_in_place() const noexcept { return false; }
  // Decrypts into memory; `size` is not zero. At most one record's worth comes. What was read in
  // place is taken off `received`.
  [[nodiscard]] virtual Result read(char* into, std::size_t size,
                                    std::span<const char>& received) = 0;
  // Encrypts; `size` is not zero and at most one record's worth. What of the ciphertext went into
  // `room` is taken off it; the rest waits to be drained, and is behind that.
  [[nodiscard]] virtual Result write(const char* data, std::size_t size, std::span<char>& room) = 0;
  // Takes ciphertext for the peer out. How much, or -1 with the Python error set.
  [[nodiscard]] virtual Py_ssize_t drain(char* into, std::size_t size) = 0;
  // Ciphertext that was fed and not yet looked at, and that was made and not yet taken. -1 with the
  // Python error set.
  [[nodiscard]] virtual Py_ssize_t incoming() = 0;
  [[nodiscard]] virtual Py_ssize_t outgoing() = 0;
  // The same of outgoing(), where asking runs nobody's code; false also for "cannot say".
  [[nodiscard]] virtual bool nothing_outgoing() noexcept { return false; }
  // The objects for ciphertext are in somebody else's hands from now on.
  virtual void expose() noexcept {}

  // Whether it holds memory that an idle connection has no use for and can give back; settle()
  // does.
  [[nodiscard]] virtual bool swollen() const noexcept { return false; }
  virtual void settle() noexcept {}

  [[nodiscard]] virtual int traverse(visitproc visit, void* arg) const = 0;

  bool listed = false;  // The loop knows that it is swollen.
};

// What a session is made from: the three objects that asyncio's SSLProtocol keeps.
struct TlsObjects {
  PyObject* ssl_object;
  PyObject* incoming;
  PyObject* outgoing;
};

// Through the objects' own methods; works with any Python, any OpenSSL, any object with these
// methods. Null with the Python error set.
[[nodiscard]] std::shared_ptr<TlsSession> open_bio_session(ModuleState& state,
                                                           const TlsObjects& objects);
// With OpenSSL's functions called at once on the connection inside the SSLObject. Null without an
// error when this connection does not pass the gates; null with the Python error set.
[[nodiscard]] std::shared_ptr<TlsSession> open_direct_session(ModuleState& state,
                                                              const TlsObjects& objects);

}  // namespace cpploop

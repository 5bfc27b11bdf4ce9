#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "binding/loop.h"
#include "binding/py/buffer.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "binding/stream_feed.h"
#include "binding/tls/tls_session.h"

namespace cpploop {

class StreamTransport;

// The native half of cpploop's SSLProtocol: everything that happens per record. The other half is
// the running Python's asyncio.sslproto.SSLProtocol, which the Python class inherits from:
// handshake, closing, time-outs and errors are its own. The attributes that both halves use live
// here, and the Python half reaches them as attributes of the object. Belongs to the loop's thread.
class TlsProtocol {
 public:
  // asyncio's SSLProtocolState.
  enum class State : std::uint8_t { unknown, unwrapped, handshake, wrapped, flushing, shutdown };
  // Attributes with an object for a value.
  enum Slot : std::uint8_t {
    kLoop,
    kState,
    kBacklog,
    kTransport,
    kSslObject,
    kIncoming,
    kOutgoing,
    kAppProtocol,
    kAppTransport,
    kAppGetBuffer,
    kAppBufferUpdated,
    kOutgoingHigh,
    kOutgoingLow,
    kIncomingHigh,
    kIncomingLow,
    kSlotCount
  };
  // Attributes that are true or false.
  enum Flag : std::uint8_t {
    kSslWritingPaused,
    kSslReadingPaused,
    kAppWritingPaused,
    kAppReadingPaused,
    kAppIsBuffered,
    kFlagCount
  };

  explicit TlsProtocol(PyObject* self, ModuleState& state) : self_(self), state_(state) {}
  TlsProtocol(const TlsProtocol&) = delete;
  TlsProtocol& operator=(const TlsProtocol&) = delete;

  // Attributes. Null when it was never set.
  [[nodiscard]] PyObject* slot(Slot slot) const noexcept { return slots_[slot].get(); }
  // The same for the Python half and everybody behind it.
  [[nodiscard]] PyObject* shown_slot(Slot slot) const noexcept;
  // False with the Python error set. Null takes the attribute away.
  [[nodiscard]] bool set_slot(Slot slot, PyObject* value);
  [[nodiscard]] bool flag(Flag flag) const noexcept { return flags_[flag]; }
  void set_flag(Flag flag, bool value) noexcept { flags_[flag] = value; }
  [[nodiscard]] Py_ssize_t backlog_bytes() const noexcept { return backlog_bytes_; }
  void set_backlog_bytes(Py_ssize_t bytes) noexcept { backlog_bytes_ = bytes; }

  // Null with RuntimeError set before the Python half was initialised, in a forked child, and on
  // free-threaded builds in another thread than the loop's.
  [[nodiscard]] Loop* usable_loop();

  // Tier 1 if `direct` and this connection allows it. 1 direct, 0 not, -1 with the Python error
  // set.
  [[nodiscard]] int open_session(bool direct);

  // From StreamTransport, in the context of its reading: `size` bytes of the loop's scratch buffer.
  // False with the Python error set.
  [[nodiscard]] bool received(const char* data, std::size_t size);
  // From any other transport.
  [[nodiscard]] PyObject* get_buffer();
  [[nodiscard]] bool buffer_updated(Py_ssize_t size);

  // transport.write() and writelines(). False with the Python error set.
  [[nodiscard]] bool write(PyObject* data);
  [[nodiscard]] bool writelines(PyObject* list);

  // asyncio's methods of the same names. False with the Python error set.
  [[nodiscard]] bool do_read();
  [[nodiscard]] bool do_write();
  [[nodiscard]] bool process_outgoing();
  // Encrypts what waits, whatever the transport's buffer says: closing comes next.
  [[nodiscard]] bool encrypt_backlog();
  // -1 with the Python error set.
  [[nodiscard]] Py_ssize_t write_buffer_size();
  [[nodiscard]] Py_ssize_t read_buffer_size();

  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

 private:
  using Outcome = TlsSession::Outcome;

  // TLS takes no more into one record.
  static constexpr std::size_t kRecordMax = 16 * 1024;
  // A record with its header, its tag and what a cipher may add.
  static constexpr std::size_t kSealedRecordMax = kRecordMax + 512;
  // Memory BIOs never shrink, so that they are fed little more than a record at a time.
  static constexpr std::size_t kFeedMax = 17 * 1024;
  // A shorter rest of what was written is copied, so that it does not keep the whole.
  static constexpr std::size_t kCopiedRest = 64 * 1024;
  // Plaintext of at least this size is decrypted into the bytes object itself.
  static constexpr std::size_t kInPlaceFrom = 8 * 1024;
  // What transports other than ours read at a time.
  static constexpr Py_ssize_t kForeignBuffer = 64 * 1024;

  // One reading: where plaintext goes, and what became of it.
  struct Reading {
    char* data = nullptr;
    std::size_t capacity = 0;
    std::size_t size = 0;
    Py_ssize_t waiting = -1;  // What the BIO holds, if that was looked at already.
    bool closed = false;
    bool full = false;
  };
  // The bytes a write takes from, held for the length of the call.
  struct Plaintext {
    py::BufferView view;
    py::Ref object;
    std::span<const char> bytes;
  };

  [[nodiscard]] bool readable() const noexcept {
    return current_ == State::wrapped || current_ == State::flushing;
  }
  [[nodiscard]] double limit(Slot slot) const noexcept { return limits_[slot - kOutgoingHigh]; }
  [[nodiscard]] std::shared_ptr<TlsSession> session();
  [[nodiscard]] bool call(PyObject* name);
  [[nodiscard]] bool fatal_error();

  [[nodiscard]] bool dispatch_received();
  [[nodiscard]] bool feed_next(TlsSession& session);
  [[nodiscard]] bool feed_all();
  [[nodiscard]] bool read_records(TlsSession& session, Reading& reading);
  [[nodiscard]] bool read_everything();
  [[nodiscard]] bool read_into_scratch(TlsSession& session, Reading& reading);
  [[nodiscard]] bool read_into_bytes(TlsSession& session, std::size_t expected, Reading& reading);
  [[nodiscard]] bool read_into_protocol(TlsSession& session);
  [[nodiscard]] bool bind_protocol();
  [[nodiscard]] bool deliver(PyObject* bytes);
  [[nodiscard]] bool peer_closed();
  [[nodiscard]] bool control_ssl_reading();

  [[nodiscard]] bool acquire(PyObject* data, Plaintext& plaintext);
  [[nodiscard]] bool send(const char* data, std::size_t size);
  [[nodiscard]] bool send_outgoing();
  [[nodiscard]] bool encrypt(std::span<const char> plaintext, bool regardless, std::size_t& taken);
  [[nodiscard]] static py::Ref rest_of(const Plaintext& plaintext, std::size_t taken);
  [[nodiscard]] bool push_backlog(PyObject* rest, PyObject* method);
  [[nodiscard]] bool write_backlog(bool regardless);
  [[nodiscard]] bool keep_rest_at_front(PyObject* backlog, const Plaintext& plaintext,
                                        std::size_t taken, Py_ssize_t length);
  [[nodiscard]] bool write_plaintext(const Plaintext& plaintext);
  [[nodiscard]] bool write_parts(const std::vector<Plaintext>& parts, std::size_t total);
  [[nodiscard]] bool write_slowly(py::Ref bytes);
  [[nodiscard]] bool after_write();
  [[nodiscard]] bool control_app_writing();

  PyObject* self_;  // Borrowed: this lives inside it.
  ModuleState& state_;
  std::array<py::Ref, kSlotCount> slots_;
  std::shared_ptr<TlsSession> session_;
  py::Ref on_data_;         // The application protocol's data_received, bound at its first use.
  StreamFeed feed_;         // In use while that protocol is asyncio's own for streams.
  py::Ref foreign_buffer_;  // What get_buffer() lent, until buffer_updated().
  std::span<const char> unfed_;  // Ciphertext in the loop's scratch that OpenSSL has not seen yet.
  Py_ssize_t backlog_bytes_ = 0;
  std::array<double, 4> limits_{};  // Of the slots from kOutgoingHigh on, as numbers.
  Loop* loop_ = nullptr;
  StreamTransport* raw_ = nullptr;  // The transport, if it is exactly ours.
  std::array<bool, kFlagCount> flags_{};
  State current_ = State::unknown;
  bool plaintext_left_ = false;  // The last read filled its memory: OpenSSL may hold more.
  bool record_begun_ = true;     // OpenSSL may hold the beginning of a record.
  bool ended_ = false;  // The peer will send no more; told again if telling it was broken off.
  bool encrypting_ = false;
};

struct TlsProtocolObject {
  PyObject_HEAD alignas(TlsProtocol) unsigned char storage[sizeof(TlsProtocol)];
  bool constructed;
};

// `object` must be an instance of _native.TlsProtocolBase.
[[nodiscard]] inline TlsProtocol& tls_protocol_of(PyObject* object) noexcept {
  return *reinterpret_cast<TlsProtocol*>(reinterpret_cast<TlsProtocolObject*>(object)->storage);
}

// The native half of a protocol that is exactly cpploop's, or null.
[[nodiscard]] inline TlsProtocol* native_tls(ModuleState& state, PyObject* protocol) noexcept {
  return state.tls_protocol_type != nullptr && Py_IS_TYPE(protocol, state.tls_protocol_type)
             ? &tls_protocol_of(protocol)
             : nullptr;
}

}  // namespace cpploop

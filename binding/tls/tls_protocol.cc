#include "binding/tls/tls_protocol.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "binding/marked.h"
#include "binding/stream_transport.h"
#include "binding/tls/scratch.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

namespace {

[[nodiscard]] bool no_memory() noexcept {
  PyErr_NoMemory();
  return false;
}

// Whether it is bytes, or a plain view of bytes: nobody can change either.
[[nodiscard]] bool is_of_bytes(PyObject* object) noexcept {
  if (!PyMemoryView_Check(object)) {
    return PyBytes_CheckExact(object);
  }
  const Py_buffer& buffer = *PyMemoryView_GET_BUFFER(object);
  return buffer.obj != nullptr && PyBytes_CheckExact(buffer.obj) && buffer.itemsize == 1 &&
         buffer.ndim == 1 && PyBuffer_IsContiguous(&buffer, 'C') != 0;
}

}  // namespace

// ---- attributes ----

bool TlsProtocol::set_slot(Slot slot, PyObject* value) {
  switch (slot) {
    case kLoop:
      if (value != nullptr && !PyObject_TypeCheck(value, state_.loop_type)) {
        PyErr_SetString(PyExc_TypeError, "this protocol works with cpploop's loops only");
        return false;
      }
      // A method that is under way, with user code in it, holds on to the loop.
      if (loop_ != nullptr && (value == nullptr || &loop_of(value) != loop_)) {
        PyErr_SetString(PyExc_AttributeError, "a TLS connection stays with its loop");
        return false;
      }
      loop_ = value == nullptr ? nullptr : &loop_of(value);
      break;
    case kState: {
      const auto states = std::span(state_.tls_states);
      const auto found = std::find(states.begin(), states.end(), value);
      current_ =
          found == states.end() ? State::unknown : static_cast<State>(1 + (found - states.begin()));
      break;
    }
    case kTransport:
      raw_ = value != nullptr && Py_IS_TYPE(value, state_.stream_transport_type)
                 ? &transport_of(value)
                 : nullptr;
      break;
    case kOutgoingHigh:
    case kOutgoingLow:
    case kIncomingHigh:
    case kIncomingLow: {
      const double number = value == nullptr ? 0 : PyFloat_AsDouble(value);
      if (number == -1.0 && PyErr_Occurred() != nullptr) {
        return false;
      }
      limits_[slot - kOutgoingHigh] = number;
      break;
    }
    default:
      break;
  }
  // What goes away may run code, which finds the new value.
  const Ref old = std::exchange(slots_[slot], Ref::borrow(value));
  if (slot == kSslObject || slot == kIncoming || slot == kOutgoing) {
    const std::shared_ptr<TlsSession> old_session = std::move(session_);
    plaintext_left_ = false;
    record_begun_ = true;
  } else if (slot == kAppProtocol) {
    const Ref old_method = std::move(on_data_);
    feed_.detach();
  }
  return true;
}

PyObject* TlsProtocol::shown_slot(Slot slot) const noexcept {
  if ((slot == kIncoming || slot == kOutgoing) && session_ != nullptr) {
    session_->expose();
  }
  return this->slot(slot);
}

Loop* TlsProtocol::usable_loop() {
  if (loop_ == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "the TLS protocol was never initialised");
    return nullptr;
  }
  if ((loop_->forked() && !loop_->check_open()) || (py::kFreeThreaded && !loop_->check_thread())) {
    return nullptr;
  }
  return loop_;
}

int TlsProtocol::open_session(bool direct) {
  const TlsObjects objects{slot(kSslObject), slot(kIncoming), slot(kOutgoing)};
  if (objects.ssl_object == nullptr || objects.incoming == nullptr || objects.outgoing == nullptr) {
    PyErr_SetString(PyExc_AttributeError, "a TLS connection needs _sslobj, _incoming, _outgoing");
    return -1;
  }
  std::shared_ptr<TlsSession> session;
  if (direct) {
    session = open_direct_session(state_, objects);
    if (session == nullptr && PyErr_Occurred() != nullptr) {
      return -1;
    }
    direct = session != nullptr;
  }
  if (session == nullptr) {
    session = open_bio_session(state_, objects);
  }
  if (session == nullptr) {
    return -1;
  }
  session_ = std::move(session);
  return direct ? 1 : 0;
}

// Held by the caller: code that runs in between may exchange it. Null with the Python error set.
std::shared_ptr<TlsSession> TlsProtocol::session() {
  if (session_ == nullptr && open_session(false) < 0) {
    return nullptr;
  }
  return session_;
}

int TlsProtocol::traverse(visitproc visit, void* arg) const {
  for (const Ref& slot : slots_) {
    Py_VISIT(slot.get());
  }
  Py_VISIT(on_data_.get());
  Py_VISIT(feed_.protocol());
  Py_VISIT(foreign_buffer_.get());
  return session_ == nullptr ? 0 : session_->traverse(visit, arg);
}

// Breaks the cycles. The loop stays: it is what every method asks first.
void TlsProtocol::clear() noexcept {
  raw_ = nullptr;
  for (int i = 0; i < kSlotCount; ++i) {
    if (i != kLoop) {
      slots_[static_cast<std::size_t>(i)].reset();
    }
  }
  current_ = State::unknown;
  on_data_.reset();
  feed_.detach();
  foreign_buffer_.reset();
  const std::shared_ptr<TlsSession> old = std::move(session_);
}

// ---- the Python half ----

bool TlsProtocol::call(PyObject* name) {
  Ref result = Ref::steal(PyObject_CallMethodNoArgs(self_, name));
  return static_cast<bool>(result);
}

// The error in flight ends the connection, as an exception does in asyncio's `except Exception`.
// False, with the error still set, for one that goes on.
bool TlsProtocol::fatal_error() {
  if (PyErr_ExceptionMatches(PyExc_Exception) == 0) {
    return false;
  }
  PendingError error = PendingError::take();
  Ref message = Ref::steal(PyUnicode_FromString("Fatal error on SSL protocol"));
  Ref result = message ? Ref::steal(PyObject_CallMethodObjArgs(
                             self_, state_.str__fatal_error, error.value(), message.get(), nullptr))
                       : Ref();
  return static_cast<bool>(result);
}

// ---- ciphertext in ----

bool TlsProtocol::received(const char* data, std::size_t size) {
  unfed_ = {data, size};
  bool ok = false;
  try {
    ok = dispatch_received();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    ok = fatal_error();
  }
  if (unfed_.empty()) {
    return ok;
  }
  // The memory is the loop's and the next reader's; the rest must not get lost with it, not even
  // when an exception leaves that does not end the connection.
  PendingError error = PendingError::take();
  const bool fed = feed_all();
  if (error) {
    error.restore();  // In place of what feeding raised, if it did.
  }
  return ok && fed;
}

bool TlsProtocol::dispatch_received() {
  if (current_ == State::wrapped) {
    return do_read();
  }
  if (!feed_all()) {
    return false;
  }
  switch (current_) {
    case State::handshake:
      return call(state_.str__do_handshake);
    case State::flushing:
      return call(state_.str__do_flush);
    case State::shutdown:
      return call(state_.str__do_shutdown);
    default:
      return true;
  }
}

PyObject* TlsProtocol::get_buffer() {
  if (!foreign_buffer_) {
    foreign_buffer_ = Ref::steal(PyByteArray_FromStringAndSize(nullptr, kForeignBuffer));
    if (!foreign_buffer_) {
      return nullptr;
    }
  }
  return PyMemoryView_FromObject(foreign_buffer_.get());
}

bool TlsProtocol::buffer_updated(Py_ssize_t size) {
  // Given up until it is asked for again: an idle connection keeps none.
  const Ref buffer = std::move(foreign_buffer_);
  // asyncio takes whatever it is told of a buffer that it has; no more than that is there.
  const Py_ssize_t lent = buffer ? PyByteArray_GET_SIZE(buffer.get()) : 0;
  if (lent > 0 && size > 0) {
    unfed_ = {PyByteArray_AS_STRING(buffer.get()), static_cast<std::size_t>(std::min(size, lent))};
    if (!feed_all()) {
      return false;
    }
  }
  return dispatch_received();
}

bool TlsProtocol::feed_next(TlsSession& session) {
  const std::span<const char> piece = unfed_.first(std::min(unfed_.size(), kFeedMax));
  unfed_ = unfed_.subspan(piece.size());
  return session.feed(piece.data(), piece.size());
}

bool TlsProtocol::feed_all() {
  if (unfed_.empty()) {
    return true;
  }
  const std::shared_ptr<TlsSession> session = this->session();
  const std::span<const char> rest = std::exchange(unfed_, {});
  return session != nullptr && session->feed(rest.data(), rest.size());
}

// ---- plaintext out ----

bool TlsProtocol::do_read() {
  if (!readable()) {
    return true;
  }
  bool ok = false;
  if (flag(kAppReadingPaused)) {
    // What the handshake has left to say must not wait for the application to read.
    ok = feed_all() && process_outgoing();
  } else {
    ok = read_everything() && (backlog_bytes_ != 0 ? do_write() : process_outgoing());
  }
  if (!ok || !control_ssl_reading()) {
    return fatal_error();
  }
  loop_->tls_scratch().note_use(session_);
  return true;
}

// Reads until OpenSSL has nothing more, or the memory is full.
//
// OpenSSL takes no more from its BIO than the record it works on. With the BIO empty and the last
// record read to its end there is nothing to come, and the call that would say so is saved: through
// the Python methods its answer would be an exception.
bool TlsProtocol::read_records(TlsSession& session, Reading& reading) {
  while (reading.size < reading.capacity) {
    if (!plaintext_left_) {
      const Py_ssize_t waiting =
          reading.waiting >= 0 ? std::exchange(reading.waiting, -1) : session.incoming();
      if (waiting < 0) {
        return false;
      }
      if (waiting == 0) {
        if (unfed_.empty()) {
          reading.closed = ended_;
          return true;
        }
        if (!session.reads_in_place() && !feed_next(session)) {
          return false;
        }
      }
    }
    const std::size_t room = reading.capacity - reading.size;
    const TlsSession::Result result = session.read(reading.data + reading.size, room, unfed_);
    plaintext_left_ = result.outcome == Outcome::done && result.count == room;
    record_begun_ = result.outcome == Outcome::again;
    switch (result.outcome) {
      case Outcome::done:
        reading.size += result.count;
        break;
      case Outcome::again:
        if (unfed_.empty()) {
          return true;
        }
        if (!feed_next(session)) {
          return false;
        }
        break;
      case Outcome::closed:
        ended_ = true;
        reading.closed = true;
        return true;
      case Outcome::failed:
        return false;
    }
  }
  reading.full = true;
  return true;
}

bool TlsProtocol::read_everything() {
  const std::shared_ptr<TlsSession> session = this->session();
  if (session == nullptr) {
    return false;
  }
  for (;;) {
    if (flag(kAppIsBuffered)) {
      return read_into_protocol(*session);
    }
    const Py_ssize_t waiting = session->incoming();
    if (waiting < 0) {
      return false;
    }
    const std::size_t expected = static_cast<std::size_t>(waiting) + unfed_.size();
    if (expected == 0 && !plaintext_left_) {
      return !ended_ || peer_closed();
    }
    if (!on_data_ && !bind_protocol()) {
      PyErr_Clear();  // It may be that nothing comes; deliver() asks again.
    }
    Reading reading;
    reading.waiting = waiting;
    const bool ok = feed_.attached() || expected < kInPlaceFrom
                        ? read_into_scratch(*session, reading)
                        : read_into_bytes(*session, expected, reading);
    if (!ok || !reading.full) {
      return ok;
    }
    // More than one delivery's worth. What was delivered may have changed everything.
    if (!readable() || flag(kAppReadingPaused)) {
      return feed_all();
    }
  }
}

bool TlsProtocol::bind_protocol() {
  PyObject* protocol = slot(kAppProtocol);
  if (protocol == nullptr) {
    PyErr_SetString(PyExc_AttributeError, "_app_protocol");
    return false;
  }
  const Ref held = Ref::borrow(protocol);
  Ref method = Ref::steal(PyObject_GetAttr(protocol, state_.str_data_received));
  if (!method) {
    return false;
  }
  // Streams of a debugging loop go the ordinary way, where every step can be seen.
  if (!loop_->debug()) {
    (void)feed_.attach(state_, protocol);
  }
  on_data_ = std::move(method);
  return true;
}

bool TlsProtocol::deliver(PyObject* bytes) {
  if (!on_data_ && !bind_protocol()) {
    return false;
  }
  const Ref method = on_data_.dup();  // Held: the protocol may be exchanged from within.
  Ref result = Ref::steal(PyObject_CallOneArg(method.get(), bytes));
  return static_cast<bool>(result);
}

bool TlsProtocol::read_into_scratch(TlsSession& session, Reading& reading) {
  Ref bytes;
  {
    const TlsScratch::Lease memory = loop_->tls_scratch().plaintext();
    if (!memory) {
      return no_memory();
    }
    reading.data = memory.data();
    reading.capacity = memory.size();
    if (!read_records(session, reading)) {
      return false;
    }
    if (reading.size > 0 && feed_.attached()) {
      switch (feed_.feed(state_, reading.data, reading.size)) {
        case StreamFeed::Outcome::fed:
          return !reading.closed || peer_closed();
        case StreamFeed::Outcome::failed:
          return false;
        case StreamFeed::Outcome::ordinary:
          break;
      }
    }
    if (reading.size > 0) {
      bytes = Ref::steal(
          PyBytes_FromStringAndSize(reading.data, static_cast<Py_ssize_t>(reading.size)));
      if (!bytes) {
        return false;
      }
    }
  }
  return (!bytes || deliver(bytes.get())) && (!reading.closed || peer_closed());
}

bool TlsProtocol::read_into_bytes(TlsSession& session, std::size_t expected, Reading& reading) {
  // Plaintext is shorter than its ciphertext; but OpenSSL may hold a part of one more record.
  const std::size_t capacity = expected + (record_begun_ || plaintext_left_ ? kRecordMax : 0);
  PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(capacity));
  Ref bytes = Ref::steal(object);
  if (!bytes) {
    return false;
  }
  reading.data = PyBytes_AS_STRING(object);
  reading.capacity = capacity;
  if (!read_records(session, reading)) {
    return false;
  }
  if (reading.size > 0) {
    object = bytes.release();
    // Shrinks in place; on failure it takes the object away, leaves null and sets the error.
    if (_PyBytes_Resize(&object, static_cast<Py_ssize_t>(reading.size)) != 0) {
      return false;
    }
    bytes = Ref::steal(object);
    if (!deliver(bytes.get())) {
      return false;
    }
  }
  return !reading.closed || peer_closed();
}

// asyncio's _do_read__buffered(): one buffer's worth, and the rest in a callback of its own.
bool TlsProtocol::read_into_protocol(TlsSession& session) {
  const Ref get_buffer = Ref::borrow(slot(kAppGetBuffer));
  const Py_ssize_t hint = read_buffer_size();
  Ref hint_object = hint < 0 ? Ref() : Ref::steal(PyLong_FromSsize_t(hint));
  if (!get_buffer || !hint_object) {
    if (PyErr_Occurred() == nullptr) {
      PyErr_SetString(PyExc_AttributeError, "_app_protocol_get_buffer");
    }
    return false;
  }
  Ref buffer = Ref::steal(PyObject_CallOneArg(get_buffer.get(), hint_object.get()));
  const Py_ssize_t length = buffer ? PyObject_Size(buffer.get()) : -1;
  if (length < 0) {
    return false;
  }
  Reading reading;
  if (length == 0) {
    reading.closed = true;  // asyncio takes it for the end, too.
  } else {
    py::BufferView view;
    if (!view.acquire(buffer.get(), PyBUF_WRITABLE)) {
      PyErr_Clear();
      PyErr_Format(PyExc_TypeError,
                   "read() argument 2 must be read-write bytes-like object, not %.50s",
                   py::type_name(buffer.get()));
      return false;
    }
    reading.data = static_cast<char*>(view.data());
    reading.capacity = view.size();
    if (!read_records(session, reading)) {
      return false;
    }
  }
  if (reading.full) {
    Ref method = Ref::steal(PyObject_GetAttr(self_, state_.str__do_read));
    if (!method || !feed_all() || !loop_->schedule(method.get(), nullptr, 0, nullptr)) {
      return false;
    }
  }
  if (reading.size > 0) {
    // The protocol's that is set now: get_buffer() may have set another.
    const Ref buffer_updated = Ref::borrow(slot(kAppBufferUpdated));
    if (!buffer_updated) {
      PyErr_SetString(PyExc_AttributeError, "_app_protocol_buffer_updated");
      return false;
    }
    Ref count = Ref::steal(PyLong_FromSize_t(reading.size));
    Ref result = count ? Ref::steal(PyObject_CallOneArg(buffer_updated.get(), count.get())) : Ref();
    if (!result) {
      return false;
    }
  }
  return !reading.closed || peer_closed();
}

bool TlsProtocol::peer_closed() {
  // Closing looks at what has come behind the end.
  return feed_all() && call(state_.str__call_eof_received) && call(state_.str__start_shutdown);
}

Py_ssize_t TlsProtocol::read_buffer_size() {
  const std::shared_ptr<TlsSession> session = this->session();
  const Py_ssize_t waiting = session == nullptr ? -1 : session->incoming();
  return waiting < 0 ? -1 : waiting + static_cast<Py_ssize_t>(unfed_.size());
}

// Asks the Python half only when it would do something.
bool TlsProtocol::control_ssl_reading() {
  if (!flag(kSslReadingPaused) && !flag(kAppReadingPaused) && !flag(kAppIsBuffered) &&
      limit(kIncomingHigh) > 0) {
    return true;  // Everything was read.
  }
  const Py_ssize_t size = read_buffer_size();
  if (size < 0) {
    return false;
  }
  const auto bytes = static_cast<double>(size);
  const bool due =
      flag(kSslReadingPaused) ? bytes <= limit(kIncomingLow) : bytes >= limit(kIncomingHigh);
  return !due || call(state_.str__control_ssl_reading);
}

// ---- plaintext in, ciphertext out ----

bool TlsProtocol::acquire(PyObject* data, Plaintext& plaintext) {
  plaintext.object = Ref::borrow(data);
  if (!PyBytes_CheckExact(data)) {
    if (plaintext.view.acquire(data, PyBUF_SIMPLE)) {
      plaintext.bytes = {static_cast<const char*>(plaintext.view.data()), plaintext.view.size()};
      return true;
    }
    if (!PyMemoryView_Check(data)) {
      return false;
    }
    // A view with gaps: its bytes, in order.
    PyErr_Clear();
    plaintext.object = Ref::steal(PyObject_CallMethodNoArgs(data, state_.str_tobytes));
    if (!plaintext.object) {
      return false;
    }
  }
  PyObject* bytes = plaintext.object.get();
  plaintext.bytes = {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
  return true;
}

bool TlsProtocol::send(const char* data, std::size_t size) {
  const Ref transport = Ref::borrow(slot(kTransport));
  if (raw_ != nullptr) {
    return raw_->write_memory(data, size);
  }
  if (!transport || transport.is_none()) {
    return true;  // The connection is gone.
  }
  Ref bytes = Ref::steal(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size)));
  Ref result =
      bytes ? Ref::steal(PyObject_CallMethodOneArg(transport.get(), state_.str_write, bytes.get()))
            : Ref();
  return static_cast<bool>(result);
}

// Encrypts and sends; `taken` says how much of it, less than all when the transport has enough (and
// that is not to be disregarded) or the connection has to hear from its peer first.
bool TlsProtocol::encrypt(std::span<const char> plaintext, bool regardless, std::size_t& taken) {
  if (encrypting_) {
    return true;  // Called from within itself: behind what is under way.
  }
  const Marked mark(encrypting_);
  const std::shared_ptr<TlsSession> session = this->session();
  if (session == nullptr) {
    return false;
  }
  const TlsScratch::Lease memory = loop_->tls_scratch().ciphertext();
  if (!memory) {
    return no_memory();
  }
  std::size_t used = 0;
  bool more = false;  // Something may be left in the BIO.
  // Records that are sealed have their numbers: what comes after them needs them.
  const auto send_sealed_and_fail = [&] {
    PendingError error = PendingError::take();
    if (used != 0 && !send(memory.data(), used)) {
      PyErr_Clear();
    }
    error.restore();
    return false;
  };
  while (taken < plaintext.size() && (regardless || !flag(kSslWritingPaused))) {
    const std::size_t piece = std::min(plaintext.size() - taken, kRecordMax);
    // While the transport has enough, what is made stays with OpenSSL.
    const std::size_t room_size = flag(kSslWritingPaused) ? 0 : memory.size() - used;
    std::span<char> room(memory.data() + used, room_size);
    const TlsSession::Result result = session->write(plaintext.data() + taken, piece, room);
    const std::size_t put = room_size - room.size();
    used += put;
    if (result.outcome == Outcome::failed) {
      return send_sealed_and_fail();
    }
    if (result.outcome != Outcome::done) {
      more = true;  // It has to hear from its peer first, and may have asked for that.
      break;
    }
    taken += result.count;
    if (flag(kSslWritingPaused)) {
      continue;
    }
    // Taken out record by record, because memory BIOs never shrink; sent together.
    if (put == 0 || session->outgoing() != 0) {
      const Py_ssize_t drained = session->drain(memory.data() + used, memory.size() - used);
      if (drained < 0) {
        return send_sealed_and_fail();
      }
      used += static_cast<std::size_t>(drained);
    }
    more = used == memory.size();
    if (memory.size() - used < kSealedRecordMax && !send(memory.data(), std::exchange(used, 0))) {
      return false;
    }
  }
  if ((used != 0 && !send(memory.data(), used)) || (more && !send_outgoing())) {
    return false;
  }
  loop_->tls_scratch().note_use(session);
  return true;
}

// Sends what OpenSSL made of its own accord: the handshake's flights, alerts, key updates.
bool TlsProtocol::send_outgoing() {
  if (session_ != nullptr && session_->nothing_outgoing()) {
    return true;
  }
  const std::shared_ptr<TlsSession> session = this->session();
  Py_ssize_t waiting = session == nullptr ? -1 : session->outgoing();
  if (waiting <= 0) {
    return waiting == 0;
  }
  const TlsScratch::Lease memory = loop_->tls_scratch().ciphertext();
  if (!memory) {
    return no_memory();
  }
  while (waiting > 0) {
    const Py_ssize_t drained = session->drain(memory.data(), memory.size());
    if (drained <= 0) {
      return drained == 0;
    }
    if (!send(memory.data(), static_cast<std::size_t>(drained))) {
      return false;
    }
    waiting -= drained;
  }
  return true;
}

bool TlsProtocol::write_backlog(bool regardless) {
  const Ref backlog = Ref::borrow(slot(kBacklog));
  while (backlog && !encrypting_ && (regardless || !flag(kSslWritingPaused))) {
    const Py_ssize_t count = PyObject_Size(backlog.get());
    if (count <= 0) {
      return count == 0;
    }
    const Ref item = Ref::steal(PySequence_GetItem(backlog.get(), 0));
    const Py_ssize_t length = item ? PyObject_Size(item.get()) : -1;
    Plaintext plaintext;
    if (length < 0 || !acquire(item.get(), plaintext)) {
      return false;
    }
    std::size_t taken = 0;
    if (!encrypt(plaintext.bytes, regardless, taken)) {
      if (taken != 0) {
        // What leaves the loop does not end the connection: what is sealed is not to go out again.
        PendingError error = PendingError::take();
        if (!keep_rest_at_front(backlog.get(), plaintext, taken, length)) {
          PyErr_Clear();
        }
        error.restore();
      }
      return false;
    }
    if (!keep_rest_at_front(backlog.get(), plaintext, taken, length)) {
      return false;
    }
    if (taken < plaintext.bytes.size()) {
      return true;
    }
  }
  return true;
}

// The front of the backlog, of `length` bytes as it was counted, was encrypted as far as `taken`.
bool TlsProtocol::keep_rest_at_front(PyObject* backlog, const Plaintext& plaintext,
                                     std::size_t taken, Py_ssize_t length) {
  if (taken == plaintext.bytes.size()) {
    if (PySequence_DelItem(backlog, 0) != 0) {
      return false;
    }
    backlog_bytes_ -= length;
    return true;
  }
  const Ref rest = rest_of(plaintext, taken);
  if (!rest || PySequence_SetItem(backlog, 0, rest.get()) != 0) {
    return false;
  }
  backlog_bytes_ += static_cast<Py_ssize_t>(plaintext.bytes.size() - taken) - length;
  return true;
}

// What was not encrypted, as something that nobody can change. A long rest of bytes is a view of
// them: copying it after each step would take time by the square of its length.
Ref TlsProtocol::rest_of(const Plaintext& plaintext, std::size_t taken) {
  PyObject* object = plaintext.object.get();
  if (taken == 0 && PyBytes_CheckExact(object)) {
    return plaintext.object.dup();
  }
  const std::size_t left = plaintext.bytes.size() - taken;
  if (left > kCopiedRest && is_of_bytes(object)) {
    const Ref view = Ref::steal(PyMemoryView_FromObject(object));
    return view ? Ref::steal(PySequence_GetSlice(view.get(), static_cast<Py_ssize_t>(taken),
                                                 static_cast<Py_ssize_t>(plaintext.bytes.size())))
                : Ref();
  }
  return Ref::steal(
      PyBytes_FromStringAndSize(plaintext.bytes.data() + taken, static_cast<Py_ssize_t>(left)));
}

bool TlsProtocol::push_backlog(PyObject* rest, PyObject* method) {
  const Ref backlog = Ref::borrow(slot(kBacklog));
  if (!backlog) {
    PyErr_SetString(PyExc_AttributeError, "_write_backlog");
    return false;
  }
  const Py_ssize_t size = PyObject_Size(rest);
  Ref result =
      size < 0 ? Ref() : Ref::steal(PyObject_CallMethodOneArg(backlog.get(), method, rest));
  if (!result) {
    return false;
  }
  backlog_bytes_ += size;
  return true;
}

bool TlsProtocol::write_plaintext(const Plaintext& plaintext) {
  std::size_t taken = 0;
  const bool waits = backlog_bytes_ != 0 || encrypting_;
  PendingError error;
  if (!waits && !encrypt(plaintext.bytes, false, taken)) {
    // What leaves the loop does not end the connection: the rest is not to get lost by it.
    error = PendingError::take();
  }
  bool ok = true;
  if (taken < plaintext.bytes.size()) {
    // What is left of this write comes before what was written from within it.
    const Ref rest = rest_of(plaintext, taken);
    ok = rest && push_backlog(rest.get(), waits ? state_.str_append : state_.str_appendleft);
  }
  if (error) {
    PyErr_Clear();
    error.restore();
    return false;
  }
  return ok;
}

bool TlsProtocol::write(PyObject* data) {
  Plaintext plaintext;
  if (!acquire(data, plaintext)) {
    return false;
  }
  if (current_ != State::wrapped) {
    return write_slowly(rest_of(plaintext, 0));
  }
  return (write_plaintext(plaintext) && after_write()) || fatal_error();
}

// Before the handshake is over data is kept, after the end it is dropped: asyncio's own method does
// both.
bool TlsProtocol::write_slowly(Ref bytes) {
  Ref list = bytes ? Ref::steal(PyTuple_Pack(1, bytes.get())) : Ref();
  Ref result =
      list ? Ref::steal(PyObject_CallMethodOneArg(self_, state_.str__write_appdata, list.get()))
           : Ref();
  return static_cast<bool>(result);
}

bool TlsProtocol::after_write() {
  if (backlog_bytes_ != 0 && !flag(kSslWritingPaused) && !write_backlog(false)) {
    return false;
  }
  return control_app_writing();
}

bool TlsProtocol::writelines(PyObject* list) {
  // A tuple of our own: looking at a piece may run code that changes the caller's list.
  const Ref pieces = Ref::steal(PySequence_Tuple(list));
  if (!pieces) {
    return false;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(pieces.get());
  bool bytes_only = current_ == State::wrapped;
  std::vector<Plaintext> parts(bytes_only ? static_cast<std::size_t>(count) : 0);
  std::size_t total = 0;
  for (Py_ssize_t i = 0; i < count && bytes_only; ++i) {
    PyObject* piece = PyTuple_GET_ITEM(pieces.get(), i);
    Plaintext& part = parts[static_cast<std::size_t>(i)];
    bytes_only = acquire(piece, part);
    total += part.bytes.size();
  }
  if (!bytes_only) {
    PyErr_Clear();
    parts.clear();
    Ref result =
        Ref::steal(PyObject_CallMethodOneArg(self_, state_.str__write_appdata, pieces.get()));
    return static_cast<bool>(result);
  }
  if (total == 0) {
    // Nothing to encrypt, but OpenSSL may have something to say: the handshake's last flight.
    return encrypting_ || do_write() || fatal_error();
  }
  return (write_parts(parts, total) && after_write()) || fatal_error();
}

// Small pieces share records, and all of them a send.
bool TlsProtocol::write_parts(const std::vector<Plaintext>& parts, std::size_t total) {
  if (total <= TlsScratch::kPlaintextSize && parts.size() > 1) {
    const TlsScratch::Lease memory = loop_->tls_scratch().plaintext();
    if (!memory) {
      return no_memory();
    }
    std::size_t used = 0;
    for (const Plaintext& part : parts) {
      std::memcpy(memory.data() + used, part.bytes.data(), part.bytes.size());
      used += part.bytes.size();
    }
    Plaintext joined;
    joined.object = Ref::borrow(Py_None);
    joined.bytes = {memory.data(), used};
    return write_plaintext(joined);
  }
  return std::all_of(parts.begin(), parts.end(), [this](const Plaintext& part) {
    return part.bytes.empty() || write_plaintext(part);
  });
}

bool TlsProtocol::do_write() { return write_backlog(false) && process_outgoing(); }

bool TlsProtocol::encrypt_backlog() {
  return backlog_bytes_ == 0 || write_backlog(true) || fatal_error();
}

bool TlsProtocol::process_outgoing() {
  if (!flag(kSslWritingPaused)) {
    if (!send_outgoing()) {
      return false;
    }
    if (backlog_bytes_ != 0 && readable() && !write_backlog(false)) {
      // asyncio encrypts within write(). Here resume_writing() may be what asks for it, and an
      // exception that came out of that would be reported, and leave the connection as it is.
      return fatal_error();
    }
  }
  return control_app_writing();
}

Py_ssize_t TlsProtocol::write_buffer_size() {
  const std::shared_ptr<TlsSession> session = this->session();
  const Py_ssize_t made = session == nullptr ? -1 : session->outgoing();
  return made < 0 ? -1 : made + backlog_bytes_;
}

bool TlsProtocol::control_app_writing() {
  if (!flag(kSslWritingPaused) && !flag(kAppWritingPaused) && backlog_bytes_ == 0 &&
      limit(kOutgoingHigh) > 0) {
    return true;  // Everything is with the transport.
  }
  const Py_ssize_t size = write_buffer_size();
  if (size < 0) {
    return false;
  }
  const auto bytes = static_cast<double>(size);
  const bool due =
      flag(kAppWritingPaused) ? bytes <= limit(kOutgoingLow) : bytes >= limit(kOutgoingHigh);
  return !due || call(state_.str__control_app_writing);
}

}  // namespace cpploop

#include "binding/stream_transport.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "binding/datagram_transport.h"
#include "binding/marked.h"
#include "binding/outgoing.h"
#include "binding/py/context.h"
#include "binding/py/guard.h"
#include "binding/python_socket.h"
#include "binding/tls/tls_protocol.h"
#include "binding/transport_parts.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

namespace {

constexpr const char* kWriteReady = "StreamTransport._write_ready";

[[nodiscard]] PendingError os_error(int error) {
  py::set_os_error(error);
  return PendingError::take();
}

// Somebody has put another object there past the attribute, through the base class's slot.
PyObject* no_dict() {
  PyErr_SetString(PyExc_TypeError, "the transport's extra information is no dict any more");
  return nullptr;
}

}  // namespace

// ---- life ----

StreamTransport::StreamTransport(PyObject* self, Loop& loop)
    : self_(self), loop_object_(Ref::borrow(loop.self())), loop_(&loop) {}

StreamTransport::~StreamTransport() { close_descriptor(); }

bool StreamTransport::open(UniqueFd&& fd, const TransportSpec& spec,
                           const os::SocketAddress* peer) {
  ModuleState& state = loop_->state();
  python_socket_ = Ref::borrow(spec.sock);
  fd_ = fd.get();
  socket_.emplace(loop_->engine(), std::move(fd), *this);
  socket_->share_number(shared_number(state, python_socket_.get(), fd_));

  os::SocketAddress local;
  const bool has_local = os::local_address(fd_, local).ok();
  if (has_local && !local_address_.assign(local)) {
    return false;
  }
  if (local.family() == AF_INET || local.family() == AF_INET6) {
    os::set_no_delay(fd_);
  }
  os::SocketAddress asked;
  if (peer == nullptr && os::peer_address(fd_, asked).ok()) {
    peer = &asked;
  }
  if (peer != nullptr && !peer_address_.assign(*peer)) {
    return false;
  }
  if (has_local && !is_known_family(local.family()) && !ask_for_names()) {
    return false;
  }
  if (spec.extra != nullptr) {
    // asyncio takes any mapping that it can write to; what is no dict is copied to one.
    PyObject*& extra = reinterpret_cast<AsyncioTransport*>(self_)->extra;
    extra = PyDict_Check(spec.extra)
                ? py::new_ref(spec.extra)
                : PyObject_CallOneArg(reinterpret_cast<PyObject*>(&PyDict_Type), spec.extra);
    if (extra == nullptr) {
      return false;
    }
  }
  context_ = Ref::borrow(spec.context);
  if (!set_protocol(spec.protocol)) {
    return false;
  }
  loop_->hold_transport(fd_, self_);
  if (spec.server != nullptr) {
    server_ = Ref::borrow(spec.server);
    if (!attach_to_server(state, server_.get(), self_)) {
      server_.reset();
      return false;
    }
  }

  return schedule_opening(*loop_, self_, spec.protocol, spec.waiter, context_.get());
}

// Of a family whose addresses the socket module alone can write, AF_VSOCK for one. Now, as asyncio
// does: later the peer may be gone.
bool StreamTransport::ask_for_names() {
  Ref sock = Ref::steal(python_socket());
  Ref names =
      sock ? Ref::steal(PyObject_CallMethod(loop_->state().support, "_names_of", "O", sock.get()))
           : Ref();
  PyObject* local = nullptr;
  PyObject* peer = nullptr;
  if (!names || PyArg_ParseTuple(names.get(), "OO", &local, &peer) == 0) {
    return false;
  }
  local_address_.set_object(Ref::borrow(local));
  peer_address_.set_object(Ref::borrow(peer));
  return true;
}

void StreamTransport::give_back() {
  if (socket_) {
    (void)socket_->force_close();
    socket_->share_number(nullptr);
    UniqueFd fd = socket_->take_fd();
    loop_->drop_transport(fd_, self_);
    if (python_socket_) {
      (void)fd.release();
    }
  }
  python_socket_.reset();
  Ref server = std::move(server_);
  if (server && !detach_from_server(loop_->state(), server.get(), self_)) {
    PyErr_Clear();
  }
}

// The one place where the descriptor is closed.
void StreamTransport::close_descriptor() noexcept {
  py::unless_thread_ends([this] {
    if (!descriptor_open()) {
      return;
    }
    const bool owned = socket_->owns_descriptor();
    UniqueFd fd = socket_->take_fd();
    if (lent_ && owned) {
      // Somebody sends on a duplicate, which would keep the connection up.
      os::shutdown_both(fd.get());
    }
    detach_and_close(loop_->state(), std::move(fd), python_socket_.get());
  });
}

void StreamTransport::finalize() {
  if (!descriptor_open()) {
    return;
  }
  PendingError saved = PendingError::take();
  ModuleState& state = loop_->state();
  warn_unclosed(state, self_);
  // What else is in this garbage may still call: it finds the transport closed.
  (void)socket_->force_close();
  close_descriptor();
  if (server_) {
    Ref server = std::move(server_);
    if (!detach_from_server(state, server.get(), self_)) {
      PyErr_WriteUnraisable(self_);
    }
  }
  saved.restore();
}

int StreamTransport::traverse(visitproc visit, void* arg) const {
  Py_VISIT(loop_object_.get());
  Py_VISIT(protocol_.get());
  Py_VISIT(python_socket_.get());
  Py_VISIT(server_.get());
  Py_VISIT(context_.get());
  Py_VISIT(read_context_.get());
  Py_VISIT(write_context_.get());
  Py_VISIT(empty_waiter_.get());
  Py_VISIT(on_data_.get());
  Py_VISIT(get_buffer_.get());
  Py_VISIT(feed_.protocol());
  return 0;
}

// Breaks the cycles. The loop stays: the descriptor's registration is with it until the very end.
void StreamTransport::clear() noexcept {
  tls_ = nullptr;
  protocol_.reset();
  server_.reset();
  context_.reset();
  read_context_.reset();
  write_context_.reset();
  empty_waiter_.reset();
  on_data_.reset();
  get_buffer_.reset();
  feed_.detach();
}

void StreamTransport::hold() noexcept {
  Py_INCREF(self_);
  loop_->note_io(self_);
}
void StreamTransport::release() noexcept { const Ref self = Ref::steal(self_); }
void StreamTransport::drop_owner(WriteQueue::Owner owner) noexcept {
  const Ref bytes = Ref::steal(static_cast<PyObject*>(owner));
}

Ref StreamTransport::new_context() {
  return context_ ? context_.dup() : Ref::steal(PyContext_CopyCurrent());
}

// ---- errors ----

void StreamTransport::fatal_error(PendingError error, const char* message) {
  if (error.must_leave_loop()) {
    loop_->leave_with(std::move(error));
    return;
  }
  // What the failing callback had written before is not the failure's to take back.
  socket_->flush();
  Ref exception = Ref::borrow(error.value());
  if (error.matches(PyExc_OSError)) {
    if (loop_->debug()) {
      Ref logged = Ref::steal(PyObject_CallMethod(loop_->state().support, "_log_fatal_error", "OsO",
                                                  self_, message, exception.get()));
      if (!logged) {
        loop_->leave_with_error();
      }
    }
  } else {
    loop_->report(message, std::move(error), self_, protocol_ ? protocol_.get() : Py_None);
  }
  Ref closed = Ref::steal(force_close(exception.get()));
  if (!closed) {
    loop_->leave_with_error();
  }
}

void StreamTransport::log_debug(const char* format) {
  log_in_debug(*loop_, self_, "_log_debug", format);
}

// ---- reading ----

bool StreamTransport::set_protocol(PyObject* protocol) {
  const int buffered = PyObject_IsInstance(protocol, loop_->state().buffered_protocol_type);
  if (buffered < 0) {
    return false;
  }
  if (socket_) {
    socket_->flush();
  }
  buffered_ = buffered != 0;
  protocol_connected_ = true;
  // The methods are bound when the first data comes, and then kept until the protocol changes.
  Ref old_on_data = std::move(on_data_);
  Ref old_get_buffer = std::move(get_buffer_);
  tls_ = native_tls(loop_->state(), protocol);
  Ref old = std::exchange(protocol_, Ref::borrow(protocol));
  feed_.detach();
  return true;
}

bool StreamTransport::bind_protocol() {
  ModuleState& state = loop_->state();
  if (!buffered_) {
    on_data_ = Ref::steal(PyObject_GetAttr(protocol_.get(), state.str_data_received));
    // Streams of a debugging loop go the ordinary way, where every step can be seen.
    if (on_data_ && !loop_->debug()) {
      (void)feed_.attach(state, protocol_.get());
    }
    return static_cast<bool>(on_data_);
  }
  get_buffer_ = Ref::steal(PyObject_GetAttr(protocol_.get(), state.str_get_buffer));
  on_data_ =
      get_buffer_ ? Ref::steal(PyObject_GetAttr(protocol_.get(), state.str_buffer_updated)) : Ref();
  return static_cast<bool>(on_data_);
}

PyObject* StreamTransport::start_reading() {
  read_context_ = new_context();
  if (!read_context_) {
    return nullptr;
  }
  socket_->start_reading();
  return py::none();
}

PyObject* StreamTransport::pause_reading() {
  if (socket_->pause_reading()) {
    paused_ = true;
    log_debug("%r pauses reading");
  }
  return py::none();
}

PyObject* StreamTransport::resume_reading() {
  if (socket_->resume_reading()) {
    paused_ = false;
    Ref context = new_context();
    if (!context) {
      return nullptr;
    }
    read_context_ = std::move(context);
    log_debug("%r resumes reading");
  }
  return py::none();
}

ReceiveBuffer StreamTransport::receive_buffer() {
  if (tls_ != nullptr) {
    return {loop_->scratch(), kTlsReadMax};
  }
  if (buffered_) {
    return protocol_buffer();
  }
  // A stream reader's bytes are copied into its buffer in any case.
  if (feed_.attached()) {
    return {loop_->scratch(), std::min(feed_.read_max(), Loop::kScratchSize)};
  }
  if (last_read_ < kDirectReadFrom) {
    return {loop_->scratch(), kCopiedReadMax};
  }
  const std::size_t size = socket_->receive_size();
  pending_bytes_ = Ref::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!pending_bytes_) {
    fatal_error(PendingError::take(), "Fatal read error on socket transport");
    return {};
  }
  return {PyBytes_AS_STRING(pending_bytes_.get()), size};
}

ReceiveBuffer StreamTransport::protocol_buffer() {
  constexpr const char* kFailure = "Fatal error: protocol.get_buffer() call failed.";
  py::InContext context(read_context_.get());
  if (!context.entered() || (!on_data_ && !bind_protocol())) {
    fatal_error(PendingError::take(), kFailure);
    return {};
  }
  Ref any_size = Ref::steal(PyLong_FromLong(-1));
  Ref method = get_buffer_.dup();
  Ref buffer = any_size ? Ref::steal(PyObject_CallOneArg(method.get(), any_size.get())) : Ref();
  if (!buffer) {
    fatal_error(PendingError::take(), kFailure);
    return {};
  }
  const Py_ssize_t length = PyObject_Size(buffer.get());
  if (length <= 0) {
    if (length == 0) {
      PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    }
    fatal_error(PendingError::take(), kFailure);
    return {};
  }
  if (!pending_view_.acquire(buffer.get(), PyBUF_WRITABLE)) {
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError,
                 "recv_into() argument 1 must be read-write bytes-like object, not %.50s",
                 py::type_name(buffer.get()));
    fatal_error(PendingError::take(), "Fatal read error on socket transport");
    return {};
  }
  return {pending_view_.data(), pending_view_.size()};
}

// What the protocol is told of a read: the count for a buffer of its own, else the bytes. Takes
// back the lent memory first, so that nothing of it is exported when user code runs.
Ref StreamTransport::received_argument(std::size_t count) {
  if (pending_view_.held()) {
    pending_view_.release();
    return Ref::steal(PyLong_FromSize_t(count));
  }
  last_read_ = count;
  if (!pending_bytes_) {
    return Ref::steal(PyBytes_FromStringAndSize(loop_->scratch(), static_cast<Py_ssize_t>(count)));
  }
  PyObject* bytes = pending_bytes_.release();
  if (static_cast<Py_ssize_t>(count) != PyBytes_GET_SIZE(bytes)) {
    // Shrinks in place; on failure it takes the object away, leaves null and sets the error.
    (void)_PyBytes_Resize(&bytes, static_cast<Py_ssize_t>(count));
  }
  return Ref::steal(bytes);
}

bool StreamTransport::feed_reader(std::size_t count) {
  const char* data = pending_bytes_ ? PyBytes_AS_STRING(pending_bytes_.get()) : loop_->scratch();
  switch (feed_.feed(loop_->state(), data, count)) {
    case StreamFeed::Outcome::fed:
      break;
    case StreamFeed::Outcome::ordinary:
      return false;
    case StreamFeed::Outcome::failed:
      fatal_error(PendingError::take(), "Fatal error: protocol.data_received() call failed.");
      break;
  }
  pending_bytes_.reset();
  return true;
}

void StreamTransport::feed_tls(std::size_t count) {
  const Ref protocol = protocol_.dup();  // Held: it may be exchanged from within.
  py::InContext context(read_context_.get());
  const Marked lent(loop_->scratch_lent);
  if (!context.entered() || !tls_->received(loop_->scratch(), count)) {
    fatal_error(PendingError::take(), "Fatal error: protocol.buffer_updated() call failed.");
  }
}

void StreamTransport::on_bytes(std::size_t count) {
  if (count == 0) {
    pending_view_.release();
    pending_bytes_.reset();
    return;
  }
  if (tls_ != nullptr && !pending_view_.held()) {
    feed_tls(count);
    return;
  }
  if (feed_.attached() && feed_reader(count)) {
    return;
  }
  // get_buffer() may have exchanged the protocol for one of the other kind: what was read went into
  // the old one's buffer, and as with asyncio the new one is asked for its buffer_updated().
  const bool into_buffer = pending_view_.held();
  const char* failure = into_buffer ? "Fatal error: protocol.buffer_updated() call failed."
                                    : "Fatal error: protocol.data_received() call failed.";
  Ref argument = received_argument(count);
  if (!argument) {
    fatal_error(PendingError::take(), "Fatal read error on socket transport");
    return;
  }
  py::InContext context(read_context_.get());
  Ref method;
  if (context.entered()) {
    if (into_buffer != buffered_) {
      method = Ref::steal(PyObject_GetAttr(protocol_.get(), loop_->state().str_buffer_updated));
    } else if (on_data_ || bind_protocol()) {
      method = on_data_.dup();  // Held: the protocol may be exchanged from within.
    }
  }
  Ref result = method ? Ref::steal(PyObject_CallOneArg(method.get(), argument.get())) : Ref();
  if (!result) {
    fatal_error(PendingError::take(), failure);
  }
}

void StreamTransport::on_end_of_stream() {
  log_debug("%r received EOF");
  py::InContext context(read_context_.get());
  Ref protocol = protocol_.dup();
  Ref keep_open =
      context.entered()
          ? Ref::steal(PyObject_CallMethodNoArgs(protocol.get(), loop_->state().str_eof_received))
          : Ref();
  const int truth = keep_open ? PyObject_IsTrue(keep_open.get()) : -1;
  if (truth < 0) {
    fatal_error(PendingError::take(), "Fatal error: protocol.eof_received() call failed.");
    return;
  }
  if (truth != 0) {
    // The protocol may still write, but nothing can be received any more.
    socket_->stop_reading_at_end();
    return;
  }
  Ref closed = Ref::steal(close());
  if (!closed) {
    loop_->leave_with_error();
  }
}

void StreamTransport::on_receive_error(int error) {
  py::InContext context(read_context_.get());
  fatal_error(os_error(error), "Fatal read error on socket transport");
}

// ---- writing ----

bool StreamTransport::refuse_write(const char* function, const char* doing) {
  if (socket_->eof_written()) {
    PyErr_Format(PyExc_RuntimeError, "Cannot call %s() after write_eof()", function);
    return true;
  }
  if (empty_waiter_) {
    PyErr_Format(PyExc_RuntimeError, "unable to %s; sendfile is in progress", doing);
    return true;
  }
  return false;
}

// asyncio's warning about a program that goes on writing into nothing.
PyObject* StreamTransport::count_lost_write() {
  ModuleState& state = loop_->state();
  if (!warn_of_lost_writes(state, socket_->lost_count(), state.str__log_closed_write)) {
    return nullptr;
  }
  socket_->count_lost_write();
  return py::none();
}

void StreamTransport::queue_object(PyObject* bytes, std::size_t offset) {
  const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(bytes));
  Ref owner = Ref::borrow(bytes);
  socket_->queue(PyBytes_AS_STRING(bytes) + offset, size - offset, bytes);
  (void)owner.release();  // The queue's now.
}

PyObject* StreamTransport::write(PyObject* data) {
  if (!OutgoingBytes::accepts(data)) {
    // The words differ between patch releases: asyncio's own write() says them.
    return PyObject_CallMethodOneArg(loop_->state().support, loop_->state().str__refuse_data, data);
  }
  if (refuse_write("write", "write")) {
    return nullptr;
  }
  OutgoingBytes outgoing;
  if (!outgoing.take(loop_->state(), data)) {
    return nullptr;
  }
  const std::size_t size = outgoing.size();
  if (size == 0) {
    return py::none();
  }
  if (socket_->lost_count() != 0) {
    return count_lost_write();
  }
  const std::size_t sent = socket_->begin_write(outgoing.data(), size);
  if (sent == size) {
    return py::none();
  }
  if (loop_->closed()) {
    // Nobody is left to send the rest.
    (void)loop_->check_open();
    return nullptr;
  }
  const OutgoingBytes::Rest rest = outgoing.rest(sent);
  if (!rest.bytes) {
    // Half of it is out: nothing that follows may be taken for the rest.
    Ref closed = Ref::steal(force_close(Py_None));
    return nullptr;
  }
  queue_object(rest.bytes.get(), rest.offset);
  end_write();
  return py::none();
}

bool StreamTransport::write_memory(const char* bytes, std::size_t size) {
  if (refuse_write("write", "write")) {
    return false;
  }
  if (socket_->lost_count() != 0) {
    const Ref counted = Ref::steal(count_lost_write());
    return static_cast<bool>(counted);
  }
  const std::size_t sent = socket_->begin_write(bytes, size);
  if (sent == size) {
    return true;
  }
  if (loop_->closed()) {
    return loop_->check_open();  // Nobody is left to send the rest.
  }
  Ref rest =
      Ref::steal(PyBytes_FromStringAndSize(bytes + sent, static_cast<Py_ssize_t>(size - sent)));
  if (!rest) {
    // Half of it is out: nothing that follows may be taken for the rest.
    const PendingError error = PendingError::take();
    Ref closed = Ref::steal(force_close(Py_None));
    PyErr_Clear();
    PyErr_NoMemory();
    return false;
  }
  queue_object(rest.get(), 0);
  end_write();
  return true;
}

PyObject* StreamTransport::writelines(PyObject* list) {
#if PY_VERSION_HEX >= 0x030C0000
  constexpr const char* kName = "writelines";
#else
  constexpr const char* kName = "write";  // asyncio's joined the pieces and called write().
#endif
  if (refuse_write(kName, kName)) {
    return nullptr;
  }
#if PY_VERSION_HEX >= 0x030C0000
  // A lost connection counts before anybody looks at the pieces.
  const int any = PyObject_IsTrue(list);
  if (any <= 0) {
    return any < 0 ? nullptr : py::none();
  }
  if (socket_->lost_count() != 0) {
    return count_lost_write();
  }
#endif
  // A tuple of our own: looking at a piece may run code that changes the caller's list.
  Ref sequence = Ref::steal(PySequence_Tuple(list));
  if (!sequence) {
    return nullptr;
  }
  // All of them are looked at before the first is queued: a bad one leaves nothing half-written.
  const Py_ssize_t count = PyTuple_GET_SIZE(sequence.get());
  std::vector<Ref> parts;
  parts.reserve(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    Ref item = Ref::borrow(PyTuple_GET_ITEM(sequence.get(), i));
    if (!PyBytes_CheckExact(item.get())) {
      Ref view = Ref::steal(PyMemoryView_FromObject(item.get()));
      item = view ? Ref::steal(PyObject_CallMethodNoArgs(view.get(), loop_->state().str_tobytes))
                  : Ref();
      if (!item) {
        return nullptr;
      }
    }
    // An empty part could never be sent.
    if (PyBytes_GET_SIZE(item.get()) != 0) {
      parts.push_back(std::move(item));
    }
  }
  if (parts.empty()) {
    return py::none();
  }
  if (socket_->lost_count() != 0) {
    return count_lost_write();
  }
  if (loop_->closed()) {
    (void)loop_->check_open();
    return nullptr;
  }
  queue_parts(parts);
  return py::none();
}

void StreamTransport::queue_parts(const std::vector<py::Ref>& parts) {
  std::size_t size = 0;
  for (const Ref& part : parts) {
    size += static_cast<std::size_t>(PyBytes_GET_SIZE(part.get()));
  }
  const bool waited = socket_->waits_for_kernel();
  const bool send_now = socket_->sends_at_once(size);
  for (const Ref& part : parts) {
    queue_object(part.get(), 0);
  }
#if PY_VERSION_HEX >= 0x030C0000
  // asyncio's tries the kernel here although it was full, and so hears at once of a peer that is
  // gone.
  if (waited) {
    const bool outer = std::exchange(retrying_, true);
    socket_->retry_send();
    retrying_ = outer;
    note_wait(false);
    return;
  }
#endif
  if (send_now) {
    socket_->flush();
    note_wait(waited);
  } else {
    end_write();
  }
}

PyObject* StreamTransport::write_eof() {
  const IoResult result = socket_->write_eof();
  if (!result.ok()) {
    py::set_os_error(result.error);
    return nullptr;
  }
  return py::none();
}

void StreamTransport::on_send_error(int error) {
  PendingError pending = os_error(error);
  Ref exception = Ref::borrow(pending.value());
  fatal_error(std::move(pending), "Fatal write error on socket transport");
  if (empty_waiter_) {
    Ref waiter = empty_waiter_.dup();
    ModuleState& state = loop_->state();
    Ref result = Ref::steal(
        PyObject_CallMethodOneArg(waiter.get(), state.str_set_exception, exception.get()));
    if (!result) {
      // Cancelled meanwhile, say.
      loop_->io_callback_failed(kWriteReady);
    }
  }
}

void StreamTransport::tell_flow_control(PyObject* name, const char* failure) {
  call_flow_control(*loop_, self_, protocol_.get(), name, failure);
}

// As asyncio's writer callback, which raises it.
void StreamTransport::on_shutdown_error(int error) {
  py::set_os_error(error);
  loop_->io_callback_failed(kWriteReady);
}

void StreamTransport::on_pause_writing() {
  tell_flow_control(loop_->state().str_pause_writing, "protocol.pause_writing() failed");
}

// Ends a write; when the kernel could not take it all, resume_writing() will run in the context of
// here, as asyncio's writer callback does.
void StreamTransport::end_write() {
  const bool waited = socket_->waits_for_kernel();
  socket_->end_write();
  note_wait(waited);
}

void StreamTransport::note_wait(bool waited) {
  if (!waited && socket_->waits_for_kernel()) {
    write_context_ = new_context();
    if (!write_context_) {
      PyErr_Clear();  // No memory: the reading context will do.
    }
  }
}

void StreamTransport::on_resume_writing() {
  if (retrying_) {
    // Called by the user's own writelines(), in the context that is current.
    tell_flow_control(loop_->state().str_resume_writing, "protocol.resume_writing() failed");
    return;
  }
  py::InContext context(write_context_ ? write_context_.get() : read_context_.get());
  tell_flow_control(loop_->state().str_resume_writing, "protocol.resume_writing() failed");
}

void StreamTransport::on_drained() {
  if (empty_waiter_) {
    Ref waiter = empty_waiter_.dup();
    Ref result =
        Ref::steal(PyObject_CallMethodOneArg(waiter.get(), loop_->state().str_set_result, Py_None));
    if (!result) {
      loop_->io_callback_failed(kWriteReady);
    }
  }
}

// ---- closing ----

PyObject* StreamTransport::close() {
  if (socket_->close() && !schedule_connection_lost(*loop_, self_, Py_None, context_.get())) {
    return nullptr;
  }
  return py::none();
}

PyObject* StreamTransport::force_close(PyObject* exception) {
  socket_->flush();
  if (socket_->force_close() &&
      !schedule_connection_lost(*loop_, self_, exception, context_.get())) {
    return nullptr;
  }
  return py::none();
}

void StreamTransport::on_closed_after_flush() {
  py::InContext context(read_context_.get());
  Ref result = Ref::steal(call_connection_lost(Py_None));
  if (!result) {
    loop_->io_callback_failed(kWriteReady);
  }
}

PyObject* StreamTransport::call_connection_lost(PyObject* exception) {
  if (!descriptor_open()) {
    return py::none();
  }
  ModuleState& state = loop_->state();
  Ref self = Ref::borrow(self_);
  Ref protocol = protocol_.dup();
  PendingError error;
  if (protocol_connected_ && protocol) {
    Ref result =
        Ref::steal(PyObject_CallMethodOneArg(protocol.get(), state.str_connection_lost, exception));
    if (!result) {
      error = PendingError::take();
    }
  }
  // What connection_lost() wrote to others is sent before this descriptor closes: the other end
  // may be one of them, and would answer a closed one with another error.
  loop_->engine().send_held();
  close_descriptor();
  loop_->drop_transport(fd_, self_);
  Ref old_on_data = std::move(on_data_);
  Ref old_get_buffer = std::move(get_buffer_);
  tls_ = nullptr;
  Ref old_protocol = std::move(protocol_);
  feed_.detach();
  Ref server = std::move(server_);
  if (server && !detach_from_server(state, server.get(), self_) && !error) {
    error = PendingError::take();
  }
  if (empty_waiter_) {
    Ref waiter = empty_waiter_.dup();
    Ref failed =
        Ref::steal(PyObject_CallMethod(state.support, "_fail_empty_waiter", "O", waiter.get()));
    if (!failed && !error) {
      error = PendingError::take();
    }
  }
  PyErr_Clear();
  if (error) {
    error.restore();
    return nullptr;
  }
  return py::none();
}

PyObject* StreamTransport::make_empty_waiter() {
  if (empty_waiter_) {
    PyErr_SetString(PyExc_RuntimeError, "Empty waiter is already set");
    return nullptr;
  }
  socket_->flush();
  Ref waiter = Ref::steal(new_future(*loop_));
  if (!waiter) {
    return nullptr;
  }
  if (socket_->queued_bytes() == 0) {
    Ref result =
        Ref::steal(PyObject_CallMethodOneArg(waiter.get(), loop_->state().str_set_result, Py_None));
    if (!result) {
      return nullptr;
    }
  }
  empty_waiter_ = waiter.dup();
  return waiter.release();
}

// ---- information ----

// The Python socket behind the transport; made only when somebody asks for it.
PyObject* StreamTransport::python_socket() {
  ModuleState& state = loop_->state();
  if (!python_socket_) {
    // A descriptor that is closed already gets a closed socket.
    const int fd = descriptor_open() ? fd_ : -1;
    python_socket_ = Ref::steal(PyObject_CallMethod(state.support, "_socket_from", "i", fd));
    if (fd >= 0) {
      socket_->share_number(shared_number(state, python_socket_.get(), fd));
    }
  }
  return python_socket_ ? py::new_ref(python_socket_.get()) : nullptr;
}

PyObject* StreamTransport::extra_dict() {
  socket_->flush();
  ModuleState& state = loop_->state();
  PyObject*& extra = reinterpret_cast<AsyncioTransport*>(self_)->extra;
  if (extra == nullptr) {
    extra = PyDict_New();
    if (extra == nullptr) {
      return nullptr;
    }
  }
  if (!PyDict_Check(extra)) {
    return no_dict();
  }
  const auto add = [&](PyObject* name, auto make) {
    const int known = PyDict_Contains(extra, name);
    if (known != 0) {
      return known > 0;
    }
    Ref value = Ref::steal(make());
    return value && PyDict_SetItem(extra, name, value.get()) == 0;
  };
  const bool complete = add(state.str_socket,
                            [&]() -> PyObject* {
                              Ref sock = Ref::steal(python_socket());
                              PyObject* told =
                                  sock ? PyObject_CallMethodOneArg(
                                             state.support, state.str__transport_socket, sock.get())
                                       : nullptr;
                              socket_told_ = told != nullptr;
                              return told;
                            }) &&
                        add(state.str_sockname, [&] { return local_address_.object(); }) &&
                        add(state.str_peername, [&] { return peer_address_.object(); });
  return complete ? py::new_ref(extra) : nullptr;
}

PyObject* StreamTransport::get_extra_info(PyObject* name, PyObject* fallback) {
  ModuleState& state = loop_->state();
  if (PyUnicode_Check(name) && PyUnicode_Compare(name, state.str_socket) == 0) {
    // Whoever asks may send on it, behind what was written before.
    socket_->flush();
  }
  PyObject* extra = reinterpret_cast<AsyncioTransport*>(self_)->extra;
  if (extra != nullptr) {
    if (!PyDict_Check(extra)) {
      return no_dict();
    }
    PyObject* value = PyDict_GetItemWithError(extra, name);
    if (value != nullptr) {
      return py::new_ref(value);
    }
    if (PyErr_Occurred() != nullptr) {
      return nullptr;
    }
  }
  if (!PyUnicode_Check(name)) {
    return py::new_ref(fallback);
  }
  if (PyUnicode_Compare(name, state.str_peername) == 0) {
    return peer_address_.object();
  }
  if (PyUnicode_Compare(name, state.str_sockname) == 0) {
    return local_address_.object();
  }
  if (PyUnicode_Compare(name, state.str_socket) == 0) {
    Ref complete = Ref::steal(extra_dict());
    return complete ? py::new_ref(PyDict_GetItemWithError(complete.get(), name)) : nullptr;
  }
  return py::new_ref(fallback);
}

// ---- making one ----

bool ensure_no_transport(Loop& loop, int fd, PyObject* object) {
  PyObject* transport = loop.transport_at(fd);
  if (transport == nullptr) {
    if (!loop.has_transports_of_asyncio()) [[likely]] {
      return true;
    }
    Ref unused = Ref::steal(PyObject_CallMethod(loop.state().support, "_refuse_used_descriptor",
                                                "OiO", loop.self(), fd, object));
    return static_cast<bool>(unused);
  }
  if (PyObject_TypeCheck(transport, loop.state().datagram_transport_base)) {
    if (datagram_transport_of(transport).socket().is_closing()) {
      return true;
    }
  } else if (transport_of(transport).lent()) {
    return true;
  } else if (StreamTransport& stream = transport_of(transport); stream.socket().is_closing()) {
    // What it still has to send would wait for ever under somebody else's registration.
    if (!stream.socket().waits_for_kernel() || !stream.socket().owns_descriptor()) {
      return true;
    }
  }
  PyErr_Format(PyExc_RuntimeError, "File descriptor %R is used by transport %R", object, transport);
  return false;
}

PyObject* new_stream_transport(Loop& loop, int fd, const TransportSpec& spec) {
  Ref self =
      Ref::steal(allocate_transport<StreamTransport>(loop.state().stream_transport_type, loop));
  if (!self) {
    return nullptr;
  }
  StreamTransport& transport = transport_of(self.get());
  const os::SocketAddress* const unknown_peer = nullptr;
  return open_on_shared(std::move(self), transport, UniqueFd(fd), spec, unknown_peer);
}

PyObject* accept_stream_transport(Loop& loop, UniqueFd fd, const os::SocketAddress& peer,
                                  const TransportSpec& spec) {
  Ref self =
      Ref::steal(allocate_transport<StreamTransport>(loop.state().stream_transport_type, loop));
  if (!self) {
    return nullptr;
  }
  StreamTransport& transport = transport_of(self.get());
  return open_or_give_back(std::move(self), transport, fd, spec, &peer);
}

}  // namespace cpploop

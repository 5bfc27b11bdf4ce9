#include "binding/datagram_transport.h"

#include <cerrno>
#include <utility>

#include "binding/address.h"
#include "binding/outgoing.h"
#include "binding/py/buffer.h"
#include "binding/py/context.h"
#include "binding/py/guard.h"
#include "binding/python_socket.h"
#include "binding/transport_parts.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

namespace {

constexpr const char* kReadReady = "DatagramTransport._read_ready";
constexpr const char* kSendtoReady = "DatagramTransport._sendto_ready";

[[nodiscard]] os::SocketAddress address_by(IoResult (*ask)(int, os::SocketAddress&) noexcept,
                                           int fd) {
  os::SocketAddress address;
  return ask(fd, address).ok() ? address : os::SocketAddress{};
}

}  // namespace

// ---- life ----

DatagramTransport::DatagramTransport(PyObject* self, Loop& loop)
    : self_(self), loop_object_(Ref::borrow(loop.self())), loop_(&loop) {}

DatagramTransport::~DatagramTransport() { close_descriptor(); }

bool DatagramTransport::open(UniqueFd&& fd, const DatagramSpec& spec) {
  ModuleState& state = loop_->state();
  python_socket_ = Ref::borrow(spec.sock);
  fd_ = fd.get();
  family_ = address_by(os::local_address, fd_).family();
  // What IP carries in one datagram has a bound, what Unix sockets carry has none to rely on.
  const auto sizes = family_ == AF_INET || family_ == AF_INET6 ? DatagramSocket::Sizes::fit_a_slot
                                                               : DatagramSocket::Sizes::any;
  socket_.emplace(loop_->engine(), std::move(fd), sizes, state.datagram_rules.header, *this);
  socket_->share_number(shared_number(state, python_socket_.get(), fd_));
  if (spec.address != nullptr) {
    const int truth = PyObject_IsTrue(spec.address);
    if (truth < 0) {
      return false;
    }
    if (truth != 0) {
      address_ = Ref::borrow(spec.address);
      allowed_addresses_ = Ref::steal(PyTuple_Pack(2, Py_None, spec.address));
      if (!allowed_addresses_) {
        return false;
      }
    }
  }
  if (!fill_extra(spec.extra)) {
    return false;
  }
  (void)set_protocol(spec.protocol);
  loop_->hold_transport(fd_, self_);

  return schedule_opening(*loop_, self_, spec.protocol, spec.waiter, nullptr);
}

// Makes what get_extra_info() tells. Whether a peer is known decides how everything is sent.
bool DatagramTransport::fill_extra(PyObject* given) {
  ModuleState& state = loop_->state();
  Ref extra = given != nullptr ? Ref::borrow(given) : Ref::steal(PyDict_New());
  if (!extra || !PyDict_Check(extra.get())) {
    if (extra) {
      PyErr_SetString(PyExc_TypeError, "extra must be a dict");
    }
    return false;
  }
  Ref sock = Ref::steal(
      PyObject_CallMethodOneArg(state.support, state.str__transport_socket, python_socket_.get()));
  Ref sockname = Ref::steal(address_object(address_by(os::local_address, fd_)));
  Ref peername = Ref::borrow(PyDict_GetItemWithError(extra.get(), state.str_peername));
  if (!peername && PyErr_Occurred() == nullptr) {
    peername = Ref::steal(address_object(address_by(os::peer_address, fd_)));
  }
  if (!sock || !sockname || !peername ||
      PyDict_SetItem(extra.get(), state.str_socket, sock.get()) != 0 ||
      PyDict_SetItem(extra.get(), state.str_sockname, sockname.get()) != 0 ||
      PyDict_SetItem(extra.get(), state.str_peername, peername.get()) != 0) {
    return false;
  }
  const int truth = PyObject_IsTrue(peername.get());
  connected_ = truth > 0;
  reinterpret_cast<AsyncioTransport*>(self_)->extra = extra.release();
  return truth >= 0;
}

void DatagramTransport::give_back() {
  if (socket_) {
    (void)socket_->force_close();
    socket_->share_number(nullptr);
    UniqueFd fd = socket_->take_fd();
    loop_->drop_transport(fd_, self_);
    (void)fd.release();
  }
  python_socket_.reset();
}

// The one place where the descriptor is closed.
void DatagramTransport::close_descriptor() noexcept {
  py::unless_thread_ends([this] {
    if (descriptor_open()) {
      detach_and_close(loop_->state(), socket_->take_fd(), python_socket_.get());
    }
  });
}

void DatagramTransport::finalize() {
  if (!descriptor_open()) {
    return;
  }
  PendingError saved = PendingError::take();
  warn_unclosed(loop_->state(), self_);
  // What else is in this garbage may still call: it finds the transport closed.
  (void)socket_->force_close();
  close_descriptor();
  saved.restore();
}

int DatagramTransport::traverse(visitproc visit, void* arg) const {
  Py_VISIT(loop_object_.get());
  Py_VISIT(protocol_.get());
  Py_VISIT(python_socket_.get());
  Py_VISIT(address_.get());
  Py_VISIT(allowed_addresses_.get());
  Py_VISIT(read_context_.get());
  Py_VISIT(write_context_.get());
  Py_VISIT(on_datagram_.get());
  if (socket_) {
    // An address may be any object, and lead back to here.
    for (const QueuedDatagram& item : socket_->queued()) {
      Py_VISIT(static_cast<PyObject*>(item.owner));
    }
  }
  return 0;
}

// Breaks the cycles. The loop stays: the descriptor's registration is with it until the very end.
void DatagramTransport::clear() noexcept {
  protocol_.reset();
  address_.reset();
  allowed_addresses_.reset();
  read_context_.reset();
  write_context_.reset();
  on_datagram_.reset();
}

void DatagramTransport::hold() noexcept {
  Py_INCREF(self_);
  loop_->note_io(self_);
}
void DatagramTransport::release() noexcept { const Ref self = Ref::steal(self_); }
void DatagramTransport::drop_owner(QueuedDatagram::Owner owner) noexcept {
  const Ref object = Ref::steal(static_cast<PyObject*>(owner));
}

// ---- errors ----

void DatagramTransport::fatal_error(PendingError error, const char* message) {
  if (error.must_leave_loop()) {
    loop_->leave_with(std::move(error));
    return;
  }
  Ref exception = Ref::borrow(error.value());
  loop_->report(message, std::move(error), self_, protocol_ ? protocol_.get() : Py_None);
  Ref closed = Ref::steal(force_close(exception.get()));
  if (!closed) {
    loop_->leave_with_error();
  }
}

// An error of the system's is the protocol's to hear; the transport lives on. False with the Python
// error set, when the protocol raised.
bool DatagramTransport::tell_error(PendingError error) {
  Ref exception = Ref::borrow(error.value());
  Ref protocol = Ref::borrow(protocol_ ? protocol_.get() : Py_None);
  Ref result = Ref::steal(PyObject_CallMethodOneArg(
      protocol.get(), loop_->state().str_error_received, exception.get()));
  if (result) {
    return true;
  }
  PendingError raised = PendingError::take();
  Ref cause = Ref::steal(PyException_GetContext(raised.value()));
  if (!cause && raised.value() != exception.get()) {
    PyException_SetContext(raised.value(), exception.release());
  }
  raised.restore();
  return false;
}

void DatagramTransport::log_debug(const char* format) {
  log_in_debug(*loop_, self_, "_log_debug", format);
}

// ---- reading ----

bool DatagramTransport::set_protocol(PyObject* protocol) {
  protocol_connected_ = true;
  // The method is bound when the first datagram comes, and then kept until the protocol changes.
  Ref old_method = std::move(on_datagram_);
  Ref old = std::exchange(protocol_, Ref::borrow(protocol));
  return true;
}

PyObject* DatagramTransport::start_reading() {
  if (!socket_->is_reading()) {
    return py::none();
  }
  read_context_ = Ref::steal(PyContext_CopyCurrent());
  if (!read_context_) {
    return nullptr;
  }
  socket_->start_reading();
  return py::none();
}

PyObject* DatagramTransport::pause_reading() {
  if (socket_->pause_reading()) {
    log_debug("%r pauses reading");
  }
  return py::none();
}

PyObject* DatagramTransport::resume_reading() {
  if (!socket_->is_closing() && socket_->paused()) {
    Ref context = Ref::steal(PyContext_CopyCurrent());
    if (!context) {
      return nullptr;
    }
    read_context_ = std::move(context);
    (void)socket_->resume_reading();
    log_debug("%r resumes reading");
  }
  return py::none();
}

void DatagramTransport::on_datagram(const Datagram& datagram) {
  // Made before the protocol is looked at: nothing of the batch is needed after that.
  Ref data =
      Ref::steal(PyBytes_FromStringAndSize(datagram.data, static_cast<Py_ssize_t>(datagram.size)));
  Ref from = data ? Ref::steal(addresses_.object_of(*datagram.from)) : Ref();
  py::InContext context(read_context_.get());
  if (!from || !context.entered()) {
    fatal_error(PendingError::take(), "Fatal read error on datagram transport");
    return;
  }
  if (!on_datagram_) {
    Ref protocol = Ref::borrow(protocol_ ? protocol_.get() : Py_None);
    on_datagram_ =
        Ref::steal(PyObject_GetAttr(protocol.get(), loop_->state().str_datagram_received));
  }
  Ref method = on_datagram_.dup();  // Held: the protocol may be exchanged from within.
  PyObject* arguments[] = {nullptr, data.get(), from.get()};
  Ref result = method ? Ref::steal(PyObject_Vectorcall(method.get(), arguments + 1,
                                                       2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr))
                      : Ref();
  if (!result) {
    loop_->io_callback_failed(kReadReady);
  }
}

void DatagramTransport::on_receive_error(int error) {
  py::InContext context(read_context_.get());
  py::set_os_error(error);
  if (!tell_error(PendingError::take())) {
    loop_->io_callback_failed(kReadReady);
  }
}

// ---- sending ----

// False with ValueError set for another peer than the one that was agreed on.
bool DatagramTransport::check_address(PyObject*& address) {
  if (!address_ || address == address_.get()) {
    return true;
  }
  const int allowed =
      address == Py_None ? 1 : PySequence_Contains(allowed_addresses_.get(), address);
  if (allowed < 0) {
    return false;
  }
  if (allowed == 0) {
    PyErr_Format(PyExc_ValueError, "Invalid address: must be None or %S", address_.get());
    return false;
  }
  address = address_.get();
  return true;
}

// asyncio's warning about a program that goes on sending into nothing.
PyObject* DatagramTransport::count_lost_write() {
  ModuleState& state = loop_->state();
  if (!warn_of_lost_writes(state, socket_->lost_count(), state.str__log_closed_write)) {
    return nullptr;
  }
  socket_->count_lost_write();
  return py::none();
}

PyObject* DatagramTransport::sendto(PyObject* data, PyObject* address) {
  ModuleState& state = loop_->state();
  if (!OutgoingBytes::accepts(data)) {
    return PyObject_CallMethodOneArg(state.support, state.str__refuse_datagram, data);
  }
  if (!state.datagram_rules.sends_empty) {
    const int truth = PyObject_IsTrue(data);
    if (truth <= 0) {
      return truth < 0 ? nullptr : py::none();
    }
  }
  if (!check_address(address)) {
    return nullptr;
  }
  if (socket_->lost_count() != 0 && address_) {
    return count_lost_write();
  }
  if (!socket_->sends_at_once()) {
    return queue(data, address);
  }
  if (!descriptor_open()) {
    // asyncio's transport has let go of its socket and of its loop by now, and says it like this.
    PyErr_SetString(PyExc_AttributeError,
                    "'NoneType' object has no attribute 'call_exception_handler'");
    return nullptr;
  }
  // Held: a hook or an address object may run code that closes the transport.
  Ref self = Ref::borrow(self_);
  Ref held_address = Ref::borrow(address);
  switch (attempt(data, address)) {
    case Attempt::sent:
      return py::none();
    case Attempt::failed:
      return send_failed() ? py::none() : nullptr;
    case Attempt::full:
      break;
  }
  if (loop_->closed()) {
    // Nobody is left to send it later.
    (void)loop_->check_open();
    return nullptr;
  }
  if (!descriptor_open() || socket_->lost_count() != 0) {
    return py::none();
  }
  Ref context = Ref::steal(PyContext_CopyCurrent());
  if (!context) {
    return nullptr;
  }
  write_context_ = std::move(context);
  socket_->wait_for_kernel();
  return queue(data, address);
}

DatagramTransport::Attempt DatagramTransport::attempt(PyObject* data, PyObject* address) {
  if (connected_) {
    return attempt_natively(data, nullptr);
  }
  const os::SocketAddress* to = addresses_.address_of(address, family_);
  if (to == nullptr) {
    return attempt_by_python(data, address);
  }
  // A copy, because the hook may send something to somebody else.
  const os::SocketAddress copy = *to;
  if (PySys_Audit("socket.sendto", "OO", python_socket_.get(), address) != 0) {
    return Attempt::failed;
  }
  if (!descriptor_open()) {
    py::set_os_error(EBADF);
    return Attempt::failed;
  }
  return attempt_natively(data, &copy);
}

DatagramTransport::Attempt DatagramTransport::attempt_natively(PyObject* data,
                                                               const os::SocketAddress* to) {
  IoResult result;
  if (PyBytes_CheckExact(data)) {
    result = socket_->send(PyBytes_AS_STRING(data),
                           static_cast<std::size_t>(PyBytes_GET_SIZE(data)), to);
  } else {
    py::BufferView view;
    if (!view.acquire(data, PyBUF_SIMPLE)) {
      return Attempt::failed;  // A view with gaps: the socket's own send() says the same.
    }
    result = socket_->send(view.data(), view.size(), to);
  }
  if (result.ok()) {
    return Attempt::sent;
  }
  if (result.would_block()) {
    return Attempt::full;
  }
  py::set_os_error(result.error);
  return Attempt::failed;
}

// Names, and whatever else has to be looked at: exactly as asyncio, by the Python socket.
DatagramTransport::Attempt DatagramTransport::attempt_by_python(PyObject* data, PyObject* address) {
  Ref sock = python_socket_.dup();
  Ref result = Ref::steal(
      PyObject_CallMethodObjArgs(sock.get(), loop_->state().str_sendto, data, address, nullptr));
  if (result) {
    return Attempt::sent;
  }
  if (PyErr_ExceptionMatches(PyExc_BlockingIOError) != 0 ||
      PyErr_ExceptionMatches(PyExc_InterruptedError) != 0) {
    PyErr_Clear();
    return Attempt::full;
  }
  return Attempt::failed;
}

// The error in flight is that of a send. False when it, or what the protocol raised about it, is
// the caller's.
bool DatagramTransport::send_failed() {
  PendingError error = PendingError::take();
  if (error.matches(PyExc_OSError)) {
    return tell_error(std::move(error));
  }
  if (error.must_leave_loop()) {
    error.restore();
    return false;
  }
  fatal_error(std::move(error), "Fatal write error on datagram transport");
  return true;
}

PyObject* DatagramTransport::queue(PyObject* data, PyObject* address) {
  Ref bytes = Ref::steal(PyBytes_FromObject(data));
  if (!bytes) {
    return nullptr;
  }
  QueuedDatagram item;
  item.data = PyBytes_AS_STRING(bytes.get());
  item.size = static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get()));
  item.addressed = !connected_;
  Ref owner = connected_ ? std::move(bytes) : Ref::steal(PyTuple_Pack(2, bytes.get(), address));
  if (!owner) {
    return nullptr;
  }
  item.owner = owner.get();
  socket_->queue(item);
  (void)owner.release();  // The queue's now.
  socket_->maybe_pause_writing();
  return py::none();
}

DatagramSent DatagramTransport::send_addressed(QueuedDatagram::Owner owner) {
  Ref item = Ref::borrow(static_cast<PyObject*>(owner));
  py::InContext context(write_context_.get());
  switch (attempt(PyTuple_GET_ITEM(item.get(), 0), PyTuple_GET_ITEM(item.get(), 1))) {
    case Attempt::sent:
      return DatagramSent::done;
    case Attempt::full:
      return DatagramSent::full;
    case Attempt::failed:
      break;
  }
  if (!send_failed()) {
    loop_->io_callback_failed(kSendtoReady);
  }
  return DatagramSent::failed;
}

void DatagramTransport::on_send_error(int error) {
  py::InContext context(write_context_.get());
  py::set_os_error(error);
  if (!send_failed()) {
    loop_->io_callback_failed(kSendtoReady);
  }
}

void DatagramTransport::tell_flow_control(PyObject* name, const char* failure) {
  call_flow_control(*loop_, self_, protocol_ ? protocol_.get() : Py_None, name, failure);
}

void DatagramTransport::on_pause_writing() {
  tell_flow_control(loop_->state().str_pause_writing, "protocol.pause_writing() failed");
}

void DatagramTransport::on_resume_writing() {
  py::InContext context(write_context_.get());
  tell_flow_control(loop_->state().str_resume_writing, "protocol.resume_writing() failed");
}

// ---- closing ----

PyObject* DatagramTransport::close() {
  if (socket_->close() && !schedule_connection_lost(*loop_, self_, Py_None, nullptr)) {
    return nullptr;
  }
  return py::none();
}

PyObject* DatagramTransport::force_close(PyObject* exception) {
  if (socket_->force_close() && !schedule_connection_lost(*loop_, self_, exception, nullptr)) {
    return nullptr;
  }
  return py::none();
}

void DatagramTransport::on_closed_after_flush() {
  py::InContext context(write_context_.get());
  Ref result = Ref::steal(call_connection_lost(Py_None));
  if (!result) {
    loop_->io_callback_failed(kSendtoReady);
  }
}

PyObject* DatagramTransport::call_connection_lost(PyObject* exception) {
  if (!descriptor_open()) {
    return py::none();
  }
  Ref self = Ref::borrow(self_);
  Ref protocol = protocol_.dup();
  PendingError error;
  if (protocol_connected_ && protocol) {
    Ref result = Ref::steal(
        PyObject_CallMethodOneArg(protocol.get(), loop_->state().str_connection_lost, exception));
    if (!result) {
      error = PendingError::take();
    }
  }
  close_descriptor();
  loop_->drop_transport(fd_, self_);
  Ref old_method = std::move(on_datagram_);
  Ref old_protocol = std::move(protocol_);
  if (error) {
    error.restore();
    return nullptr;
  }
  return py::none();
}

// ---- information ----

PyObject* DatagramTransport::extra() const noexcept {
  return reinterpret_cast<AsyncioTransport*>(self_)->extra;
}

PyObject* DatagramTransport::get_extra_info(PyObject* name, PyObject* fallback) {
  PyObject* value = extra() == nullptr ? nullptr : PyDict_GetItemWithError(extra(), name);
  if (value == nullptr && PyErr_Occurred() != nullptr) {
    return nullptr;
  }
  return py::new_ref(value == nullptr ? fallback : value);
}

// ---- making one ----

PyObject* new_datagram_transport(Loop& loop, int fd, const DatagramSpec& spec) {
  Ref self =
      Ref::steal(allocate_transport<DatagramTransport>(loop.state().datagram_transport_type, loop));
  if (!self) {
    return nullptr;
  }
  DatagramTransport& transport = datagram_transport_of(self.get());
  return open_on_shared(std::move(self), transport, UniqueFd(fd), spec);
}

}  // namespace cpploop

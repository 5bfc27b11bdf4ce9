#include "binding/sock_operation.h"

#include <atomic>
#include <cerrno>
#include <utility>
#include <vector>

#include "binding/address.h"
#include "binding/py/guard.h"
#include "binding/python_socket.h"
#include "binding/resolving.h"
#include "binding/stream_transport.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

namespace {

constexpr SockCallTraits kTraits[] = {
    {"sock_recv", 2, 2, kWantReadable, SocketMember::recv},
    {"sock_recv_into", 2, 2, kWantReadable, SocketMember::recv_into},
    {"sock_recvfrom", 2, 2, kWantReadable, SocketMember::recvfrom},
    {"sock_recvfrom_into", 2, 3, kWantReadable, SocketMember::recvfrom_into},
    {"sock_sendall", 2, 2, kWantWritable, SocketMember::send},
    {"sock_sendto", 3, 3, kWantWritable, SocketMember::sendto},
    {"sock_connect", 2, 2, kWantWritable, SocketMember::connect},
    {"sock_accept", 1, 1, kWantReadable, SocketMember::accept},
};

// The errors that asyncio's sock_*() meet as BlockingIOError or InterruptedError: try again later.
[[nodiscard]] constexpr bool means_later(int error) noexcept {
  return error == EAGAIN || error == EALREADY || error == EINPROGRESS || error == EINTR;
}

// Runs a part of the coroutine; memory that runs out in C++ is Python's MemoryError.
template <typename Body>
[[nodiscard]] PySendResult guarded(Body body) {
  try {
    return body();
  } catch (...) {
    py::set_error_from_cpp();
    return PYGEN_ERROR;
  }
}

// What `await` would drive: the object itself if it is a coroutine, else what it offers.
[[nodiscard]] Ref awaitable_iterator(PyObject* object) {
  if (PyCoro_CheckExact(object)) {
    return Ref::borrow(object);
  }
  const PyAsyncMethods* async = Py_TYPE(object)->tp_as_async;
  if (async == nullptr || async->am_await == nullptr) {
    PyErr_Format(PyExc_TypeError, "object %.100s can't be used in 'await' expression",
                 Py_TYPE(object)->tp_name);
    return {};
  }
  return Ref::steal(async->am_await(object));
}

// The warning that the interpreter gives for its own coroutines. False with the Python error set: a
// filter made it one.
[[nodiscard]] bool warn_never_awaited(PyObject* operation, SockCall call) {
  Ref warnings = Ref::steal(PyImport_ImportModule("warnings"));
  if (!warnings) {
    // The interpreter ends, and its modules are gone.
    PyErr_Clear();
    return PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine 'Loop.%s' was never awaited",
                            traits_of(call).name) == 0;
  }
  Ref result =
      Ref::steal(PyObject_CallMethod(warnings.get(), "_warn_unawaited_coroutine", "O", operation));
  return static_cast<bool>(result);
}

// (value, address), the address as the socket module shows it.
[[nodiscard]] Ref with_address(Ref value, const os::SocketAddress& from) {
  Ref address = value ? Ref::steal(address_object(from)) : Ref();
  return address ? Ref::steal(PyTuple_Pack(2, value.get(), address.get())) : Ref();
}

}  // namespace

const SockCallTraits& traits_of(SockCall call) noexcept {
  return kTraits[static_cast<std::size_t>(call)];
}

// ---- the method ----

PyObject* start_sock_call(PyObject* self, SockCall call, const py::CallArgs& args) {
  Loop& loop = loop_of(self);
  if (loop.forked() && !loop.check_open()) {
    return nullptr;  // Also where nothing has to wait: the bytes are the parent's.
  }
  const SockCallTraits& traits = traits_of(call);
  // asyncio's own does what is rare (debug mode, keywords, sockets of other kinds) and tells what
  // is wrong.
  const bool native = args.keyword_count() == 0 && args.positional >= traits.arguments_min &&
                      args.positional <= traits.arguments_max && !loop.debug() &&
                      !loop.overrides().watchers && is_plain_socket(loop.state(), args.values[0]);
  return native ? new_sock_operation(loop, call, args.values, args.positional)
                : asyncio_sock_call(loop, call, args);
}

PyObject* asyncio_sock_call(Loop& loop, SockCall call, const py::CallArgs& args) {
  Ref method =
      Ref::steal(PyObject_GetAttrString(loop.state().selector_loop_type, traits_of(call).name));
  if (!method) {
    return nullptr;
  }
  std::vector<PyObject*> values{loop.self()};
  values.insert(values.end(), args.values, args.values + args.positional + args.keyword_count());
  return PyObject_Vectorcall(method.get(), values.data(),
                             static_cast<std::size_t>(args.positional) + 1, args.keywords);
}

// ---- life ----

SockOperation::SockOperation(PyObject* self, Loop& loop, SockCall call, PyObject* const* arguments,
                             Py_ssize_t count)
    : self_(self),
      loop_object_(Ref::borrow(loop.self())),
      loop_(&loop),
      sock_(Ref::borrow(arguments[0])),
      call_(call) {
  for (Py_ssize_t i = 1; i < count; ++i) {
    arguments_[i - 1] = Ref::borrow(arguments[i]);
  }
}

int SockOperation::traverse(visitproc visit, void* arg) const {
  Py_VISIT(loop_object_.get());
  Py_VISIT(sock_.get());
  for (const Ref& argument : arguments_) {
    Py_VISIT(argument.get());
  }
  Py_VISIT(awaited_.get());
  Py_VISIT(future_.get());
  Py_VISIT(data_.exporter());
  return 0;
}

// Breaks the cycles. The loop stays, for those who ask the dead.
void SockOperation::clear() noexcept {
  stage_ = Stage::finished;
  finish();
}

void SockOperation::finish() noexcept {
  stage_ = Stage::finished;
  data_.release();
  const Ref future = std::move(future_);
  const Ref awaited = std::move(awaited_);
  const Ref sock = std::move(sock_);
  for (Ref& argument : arguments_) {
    argument.reset();
  }
}

void SockOperation::finalize() {
  if (stage_ != Stage::created) {
    return;  // An inner coroutine ends itself; a watched operation is held by its loop.
  }
  PendingError saved = PendingError::take();
  if (!warn_never_awaited(self_, call_)) {
    PyErr_WriteUnraisable(self_);
  }
  saved.restore();
}

// ---- the coroutine ----

bool SockOperation::enter() noexcept {
  if (py::kFreeThreaded && !loop_->check_thread()) {
    return false;
  }
  const bool was_running =
      py::kFreeThreaded ? std::atomic_ref(running_).exchange(true) : std::exchange(running_, true);
  if (was_running) {
    PyErr_SetString(PyExc_ValueError, "coroutine already executing");
    return false;
  }
  return true;
}

PySendResult SockOperation::leave(PySendResult outcome) {
  if (outcome != PYGEN_NEXT) {
    stop_watching();
    if (outcome == PYGEN_ERROR && PyErr_ExceptionMatches(PyExc_StopIteration) != 0) {
      // It would look like a result.
      PendingError cause = PendingError::take();
      PyErr_SetString(PyExc_RuntimeError, "coroutine raised StopIteration");
      PendingError error = PendingError::take();
      PyException_SetCause(error.value(), py::new_ref(cause.value()));
      PyException_SetContext(error.value(), py::new_ref(cause.value()));
      error.restore();
    }
    PendingError pending = PendingError::take();
    finish();
    pending.restore();
  }
  running_ = false;
  return outcome;
}

const char* SockOperation::state_name() const noexcept {
  if (running_) {
    return "CORO_RUNNING";
  }
  switch (stage_) {
    case Stage::created:
      return "CORO_CREATED";
    case Stage::finished:
      return "CORO_CLOSED";
    case Stage::waiting:
    case Stage::resolving:
    case Stage::delegated:
      break;
  }
  return "CORO_SUSPENDED";
}

PySendResult SockOperation::send(PyObject* value, PyObject** result) {
  *result = nullptr;
  if (!enter()) {
    return PYGEN_ERROR;
  }
  switch (stage_) {
    case Stage::created:
      if (value != nullptr && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        running_ = false;
        return PYGEN_ERROR;
      }
      return leave(guarded([&] { return begin(result); }));
    case Stage::finished:
      running_ = false;
      PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
      return PYGEN_ERROR;
    case Stage::waiting:
    case Stage::resolving:
    case Stage::delegated:
      break;
  }
  return leave(guarded([&] { return resume(value == nullptr ? Py_None : value, result); }));
}

PySendResult SockOperation::throw_in(PyObject* exception, PyObject** result) {
  *result = nullptr;
  if (!enter()) {
    return PYGEN_ERROR;
  }
  if (stage_ == Stage::finished) {
    running_ = false;
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return PYGEN_ERROR;
  }
  const bool inner = stage_ == Stage::resolving || stage_ == Stage::delegated;
  if (!inner || PyErr_GivenExceptionMatches(exception, PyExc_GeneratorExit) != 0) {
    stop_watching();
    Ref closed =
        inner ? Ref::steal(PyObject_CallMethodNoArgs(awaited_.get(), loop_->state().str_close))
              : Ref::borrow(Py_None);
    if (closed) {
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
    }
    return leave(PYGEN_ERROR);
  }
  *result = PyObject_CallMethodOneArg(awaited_.get(), loop_->state().str_throw, exception);
  if (*result != nullptr) {
    return leave(PYGEN_NEXT);
  }
  if (PyErr_ExceptionMatches(PyExc_StopIteration) == 0) {
    return leave(PYGEN_ERROR);
  }
  // The inner coroutine caught it and returned.
  PendingError stop = PendingError::take();
  Ref value = Ref::steal(PyObject_GetAttrString(stop.value(), "value"));
  if (!value) {
    return leave(PYGEN_ERROR);
  }
  if (stage_ == Stage::resolving) {
    return leave(guarded([&] { return resolved(value.get(), result); }));
  }
  *result = value.release();
  return leave(PYGEN_RETURN);
}

bool SockOperation::close() {
  if (stage_ == Stage::finished && !running_) {
    return true;
  }
  if (!enter()) {
    return false;
  }
  Ref closed = Ref::borrow(Py_None);
  if (stage_ == Stage::resolving || stage_ == Stage::delegated) {
    closed = Ref::steal(PyObject_CallMethodNoArgs(awaited_.get(), loop_->state().str_close));
  }
  (void)leave(closed ? PYGEN_RETURN : PYGEN_ERROR);
  return static_cast<bool>(closed);
}

// ---- from the first send to the result ----

PySendResult SockOperation::begin(PyObject** result) {
  if (!is_usual()) {
    return delegate(result);
  }
  if (call_ == SockCall::connect && socket_family(loop_->state(), sock_.get()) != AF_UNIX &&
      !is_resolved(*loop_, sock_.get(), arguments_[0].get())) {
    return resolve(result);
  }
  return first_attempt(result);
}

// What asyncio checks first, and what the native way needs. All that is out of the ordinary is left
// to asyncio's own coroutine, which raises what there is to raise.
bool SockOperation::is_usual() {
  ModuleState& state = loop_->state();
  fd_ = socket_descriptor(state, sock_.get());
  if (fd_ < 0 || !is_non_blocking(state, sock_.get())) {
    return false;
  }
  switch (call_) {
    case SockCall::recv:
      return take_size(arguments_[0].get());
    case SockCall::recvfrom:
      return is_known_family(socket_family(state, sock_.get())) && take_size(arguments_[0].get());
    case SockCall::recvfrom_into: {
      if (!is_known_family(socket_family(state, sock_.get()))) {
        return false;
      }
      if (arguments_[1] && !take_size(arguments_[1].get())) {
        return false;
      }
      if (size_ != 0) {
        return true;
      }
      const Py_ssize_t length = PyObject_Size(arguments_[0].get());
      arguments_[1] = length < 0 ? Ref() : Ref::steal(PyLong_FromSsize_t(length));
      PyErr_Clear();
      size_ = static_cast<std::size_t>(length);
      return static_cast<bool>(arguments_[1]);
    }
    case SockCall::accept:
      // There is no accept() that never waits whatever the descriptor says.
      return is_known_family(socket_family(state, sock_.get())) && os::is_non_blocking(fd_);
    case SockCall::connect:
      return is_known_family(socket_family(state, sock_.get()));
    case SockCall::recv_into:
    case SockCall::sendall:
    case SockCall::sendto:
      return true;
  }
  return false;
}

bool SockOperation::take_size(PyObject* object) {
  if (!PyLong_CheckExact(object)) {
    return false;
  }
  const Py_ssize_t size = PyLong_AsSsize_t(object);
  PyErr_Clear();
  size_ = static_cast<std::size_t>(size);
  return size >= 0;
}

PySendResult SockOperation::first_attempt(PyObject** result) {
  Ref value;
  switch (attempt(value)) {
    case Attempt::done:
      *result = value.release();
      return PYGEN_RETURN;
    case Attempt::again:
      return wait(result);
    case Attempt::unusual:
      return delegate(result);
    case Attempt::failed:
      break;
  }
  return PYGEN_ERROR;
}

PySendResult SockOperation::delegate(PyObject** result) {
  PyObject* values[1 + kArgumentsMax] = {sock_.get(), arguments_[0].get(), arguments_[1].get()};
  Py_ssize_t count = 1;
  while (count <= kArgumentsMax && values[count] != nullptr) {
    ++count;
  }
  Ref coroutine = Ref::steal(asyncio_sock_call(*loop_, call_, {values, count, nullptr}));
  awaited_ = coroutine ? awaitable_iterator(coroutine.get()) : Ref();
  if (!awaited_) {
    return PYGEN_ERROR;
  }
  stage_ = Stage::delegated;
  return resume(Py_None, result);
}

PySendResult SockOperation::resolve(PyObject** result) {
  ModuleState& state = loop_->state();
  Ref method = Ref::steal(PyObject_GetAttr(loop_->self(), state.str__ensure_resolved));
  Ref family = method ? Ref::steal(PyObject_GetAttr(sock_.get(), state.str_family)) : Ref();
  Ref type = family ? Ref::steal(PyObject_GetAttr(sock_.get(), state.str_type)) : Ref();
  Ref proto = type ? Ref::steal(PyObject_GetAttr(sock_.get(), state.str_proto)) : Ref();
  Ref keywords =
      proto ? Ref::steal(Py_BuildValue("{s:O,s:O,s:O,s:O}", "family", family.get(), "type",
                                       type.get(), "proto", proto.get(), "loop", loop_->self()))
            : Ref();
  Ref positional = keywords ? Ref::steal(PyTuple_Pack(1, arguments_[0].get())) : Ref();
  Ref coroutine = positional
                      ? Ref::steal(PyObject_Call(method.get(), positional.get(), keywords.get()))
                      : Ref();
  awaited_ = coroutine ? awaitable_iterator(coroutine.get()) : Ref();
  if (!awaited_) {
    return PYGEN_ERROR;
  }
  stage_ = Stage::resolving;
  return resume(Py_None, result);
}

PySendResult SockOperation::resolved(PyObject* infos, PyObject** result) {
  awaited_.reset();
  Ref info = Ref::steal(PySequence_GetItem(infos, 0));
  Ref address = info ? Ref::steal(PySequence_GetItem(info.get(), 4)) : Ref();
  if (!address) {
    return PYGEN_ERROR;
  }
  arguments_[0] = std::move(address);
  // Looking it up may have taken long: the socket may be closed by now.
  fd_ = socket_descriptor(loop_->state(), sock_.get());
  return first_attempt(result);
}

PySendResult SockOperation::wait(PyObject** result) {
  future_ = Ref::steal(new_future(*loop_));
  Ref number = future_ ? Ref::steal(PyLong_FromLong(fd_)) : Ref();
  if (!number || !ensure_no_transport(*loop_, fd_, number.get()) || !loop_->check_open()) {
    return PYGEN_ERROR;
  }
  stage_ = Stage::waiting;  // From here on an error takes the watcher away again.
  const bool watched = receives() ? loop_->watch_after_read(fd_, sock_.get(), self_)
                                  : loop_->watch(fd_, traits_of(call_).wanted, self_);
  if (!watched) {
    return PYGEN_ERROR;
  }
  awaited_ = awaitable_iterator(future_.get());
  if (!awaited_) {
    return PYGEN_ERROR;
  }
  return PyIter_Send(awaited_.get(), Py_None, result);
}

PySendResult SockOperation::resume(PyObject* value, PyObject** result) {
  // Held here: what runs may close everything.
  const Ref awaited = awaited_.dup();
  const PySendResult outcome = PyIter_Send(awaited.get(), value, result);
  if (outcome != PYGEN_RETURN || stage_ != Stage::resolving) {
    return outcome;
  }
  Ref infos = Ref::steal(std::exchange(*result, nullptr));
  return resolved(infos.get(), result);
}

// ---- the watcher ----

bool SockOperation::receives() const noexcept {
  return traits_of(call_).wanted == kWantReadable && call_ != SockCall::accept;
}

void SockOperation::stop_watching() noexcept {
  if (stage_ == Stage::waiting && !loop_->closed() && !loop_->forked()) {
    loop_->unwatch(fd_, traits_of(call_).wanted, self_);
  }
}

void SockOperation::on_ready() {
  const Ref self = Ref::borrow(self_);
  const Ref future = future_.dup();
  if (!future) {
    return;
  }
  ModuleState& state = loop_->state();
  Ref done = Ref::steal(PyObject_CallMethodNoArgs(future.get(), state.str_done));
  if (done.get() == Py_True) {
    return;  // Cancelled; the coroutine will be thrown into in a moment.
  }
  Ref value;
  const Attempt outcome = done ? attempt_when_ready(value) : Attempt::failed;
  if (outcome == Attempt::again) {
    loop_->look_again(fd_);
    return;
  }
  if (outcome == Attempt::done && receives()) {
    loop_->rest(fd_, self_);
  }
  PendingError error = PendingError::take();
  if (error.must_leave_loop()) {
    loop_->leave_with(std::move(error));
    return;
  }
  stop_watching();
  data_.release();
  Ref told =
      error
          ? Ref::steal(
                PyObject_CallMethodOneArg(future.get(), state.str_set_exception, error.value()))
          : Ref::steal(PyObject_CallMethodOneArg(future.get(), state.str_set_result, value.get()));
  if (!told) {
    loop_->io_callback_failed("SockOperation.on_ready");
  }
}

SockOperation::Attempt SockOperation::attempt_when_ready(Ref& result) {
  if (socket_descriptor(loop_->state(), sock_.get()) != fd_) {
    // It was closed while a duplicate of it kept the registration alive: the number may be another
    // connection's by now.
    py::set_os_error(EBADF);
    return Attempt::failed;
  }
  const Attempt outcome = call_ == SockCall::connect ? connect_outcome(result) : attempt(result);
  return outcome == Attempt::unusual ? ask_socket(result) : outcome;
}

// ---- one try ----

SockOperation::Attempt SockOperation::attempt(Ref& result) {
  switch (call_) {
    case SockCall::recv:
      return receive(result, false);
    case SockCall::recvfrom:
      return receive(result, true);
    case SockCall::recv_into:
      return receive_into(result, false);
    case SockCall::recvfrom_into:
      return receive_into(result, true);
    case SockCall::sendall:
      return send_rest(result);
    case SockCall::accept:
      return accept(result);
    case SockCall::connect:
      return connect(result);
    case SockCall::sendto:
      // The socket module knows every form of address, and whom to tell before it is used.
      return ask_socket(result);
  }
  return Attempt::unusual;
}

// Small reads go through the loop's buffer into bytes of the right size; where reads are large, the
// next one lands in the bytes object itself.
IoResult SockOperation::receive_bytes(Ref& bytes, os::SocketAddress* from) {
  if (size_ == 0 && from == nullptr) {
    // As socket.recv(0), which asks the kernel nothing.
    bytes = Ref::steal(PyBytes_FromStringAndSize(nullptr, 0));
    return IoResult::success(0);
  }
  const bool large = size_ > kDirectReadFrom && loop_->last_sock_read > kDirectReadFrom;
  if (size_ > Loop::kScratchSize || large || loop_->scratch_lent) {
    PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size_));
    if (object == nullptr) {
      return IoResult::failure(ENOMEM);
    }
    const IoResult received = os::receive_now(fd_, PyBytes_AS_STRING(object), size_, from);
    const std::size_t count = received.ok() ? static_cast<std::size_t>(received.value) : 0;
    if (count != size_) {
      (void)_PyBytes_Resize(&object, static_cast<Py_ssize_t>(count));
    }
    bytes = Ref::steal(object);
    if (received.ok()) {
      loop_->last_sock_read = count;
    }
    return received;
  }
  char* memory = loop_->scratch();
  const IoResult received = os::receive_now(fd_, memory, size_, from);
  if (received.ok()) {
    bytes = Ref::steal(PyBytes_FromStringAndSize(memory, static_cast<Py_ssize_t>(received.value)));
    loop_->last_sock_read = static_cast<std::size_t>(received.value);
  }
  return received;
}

SockOperation::Attempt SockOperation::receive(Ref& result, bool with_peer) {
  os::SocketAddress from;
  Ref bytes;
  const IoResult received = receive_bytes(bytes, with_peer ? &from : nullptr);
  if (means_later(received.error)) {
    return Attempt::again;
  }
  if (!received.ok()) {
    if (PyErr_Occurred() == nullptr) {
      py::set_os_error(received.error);
    }
    return Attempt::failed;
  }
  result = with_peer ? with_address(std::move(bytes), from) : std::move(bytes);
  return result ? Attempt::done : Attempt::failed;
}

// Whether giving its memory has left the socket open: from Python 3.12 on that may run any code.
bool SockOperation::is_still_open_after(PyObject* memory) const noexcept {
  return PyBytes_CheckExact(memory) || PyByteArray_CheckExact(memory) ||
         has_descriptor(loop_->state(), sock_.get(), fd_);
}

SockOperation::Attempt SockOperation::receive_into(Ref& result, bool with_peer) {
  py::BufferView memory;
  if (!memory.acquire(arguments_[0].get(), PyBUF_WRITABLE)) {
    PyErr_Clear();
    return Attempt::unusual;
  }
  const std::size_t size = with_peer ? size_ : memory.size();
  if (size > memory.size() || !is_still_open_after(arguments_[0].get())) {
    return Attempt::unusual;
  }
  os::SocketAddress from;
  // socket.recv_into() asks the kernel nothing for an empty buffer, socket.recvfrom_into() does.
  const IoResult received = size == 0 && !with_peer ? IoResult::success(0)
                                                    : os::receive_now(fd_, memory.data(), size,
                                                                      with_peer ? &from : nullptr);
  memory.release();
  if (means_later(received.error)) {
    return Attempt::again;
  }
  if (!received.ok()) {
    py::set_os_error(received.error);
    return Attempt::failed;
  }
  Ref count = Ref::steal(PyLong_FromLongLong(received.value));
  result = with_peer ? with_address(std::move(count), from) : std::move(count);
  return result ? Attempt::done : Attempt::failed;
}

SockOperation::Attempt SockOperation::send_rest(Ref& result) {
  if (!data_.held()) {
    if (!data_.acquire(arguments_[0].get(), PyBUF_SIMPLE)) {
      PyErr_Clear();
      return Attempt::unusual;
    }
    if (!is_still_open_after(arguments_[0].get())) {
      return Attempt::unusual;
    }
  }
  const std::size_t left = data_.size() - size_;
  const IoResult sent = os::send_now(fd_, static_cast<const char*>(data_.data()) + size_, left);
  if (means_later(sent.error)) {
    return Attempt::again;
  }
  if (!sent.ok()) {
    py::set_os_error(sent.error);
    return Attempt::failed;
  }
  size_ += static_cast<std::size_t>(sent.value);
  if (size_ < data_.size()) {
    return Attempt::again;
  }
  data_.release();
  result = Ref::borrow(Py_None);
  return Attempt::done;
}

SockOperation::Attempt SockOperation::accept(Ref& result) {
  os::SocketAddress peer;
  const IoResult accepted = os::accept(fd_, peer);
  if (means_later(accepted.error)) {
    return Attempt::again;
  }
  if (!accepted.ok()) {
    py::set_os_error(accepted.error);
    return Attempt::failed;
  }
  Ref sock = Ref::steal(
      accepted_socket(loop_->state(), sock_.get(), UniqueFd(static_cast<int>(accepted.value))));
  result = with_address(std::move(sock), peer);
  return result ? Attempt::done : Attempt::failed;
}

// Without the exception that the socket's own method has for a connect that goes on.
SockOperation::Attempt SockOperation::connect(Ref& result) {
  ModuleState& state = loop_->state();
  os::SocketAddress address;
  // A descriptor that others made blocking waits for its peer, and its own method lets other
  // threads run meanwhile.
  if (!literal_address(arguments_[0].get(), socket_family(state, sock_.get()), address) ||
      !os::is_non_blocking(fd_)) {
    return ask_socket(result);
  }
  if (PySys_Audit("socket.connect", "OO", sock_.get(), arguments_[0].get()) != 0) {
    return Attempt::failed;
  }
  // Whoever was told may have closed it.
  int error =
      socket_descriptor(state, sock_.get()) == fd_ ? os::connect(fd_, address).error : EBADF;
  if (error == EINPROGRESS && address.is_loopback() && os::is_connected(fd_)) {
    // Over loopback both ends have met before connect() returns: no registration and no wait.
    error = 0;
  }
  if (means_later(error)) {
    return Attempt::again;
  }
  if (error != 0) {
    py::set_os_error(error);
    return Attempt::failed;
  }
  result = Ref::borrow(Py_None);
  return Attempt::done;
}

// A connect that was under way has come to its end.
SockOperation::Attempt SockOperation::connect_outcome(Ref& result) {
  const int error = os::pending_error(fd_);
  if (means_later(error)) {
    return Attempt::again;
  }
  if (error == 0) {
    result = Ref::borrow(Py_None);
    return Attempt::done;
  }
  Ref text = Ref::steal(PyUnicode_FromFormat("Connect call failed %S", arguments_[0].get()));
  Ref exception =
      text ? Ref::steal(PyObject_CallFunction(PyExc_OSError, "iO", error, text.get())) : Ref();
  if (exception) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.get())), exception.get());
  }
  return Attempt::failed;
}

// The socket's own method, with the arguments as they are.
SockOperation::Attempt SockOperation::ask_socket(Ref& result) {
  PyObject* method = loop_->state().socket_members[static_cast<int>(traits_of(call_).method)];
  PyObject* values[] = {sock_.get(), arguments_[0].get(), arguments_[1].get()};
  std::size_t count = 1;
  while (count <= kArgumentsMax && values[count] != nullptr) {
    ++count;
  }
  result = Ref::steal(PyObject_Vectorcall(method, values, count, nullptr));
  if (result) {
    return Attempt::done;
  }
  if (PyErr_ExceptionMatches(PyExc_BlockingIOError) != 0 ||
      PyErr_ExceptionMatches(PyExc_InterruptedError) != 0) {
    PyErr_Clear();
    return Attempt::again;
  }
  return Attempt::failed;
}

}  // namespace cpploop

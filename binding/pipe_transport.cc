#include "binding/pipe_transport.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "binding/handle.h"
#include "binding/py/guard.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

namespace {

[[nodiscard]] bool raise_os_error(int error) {
  py::set_os_error(error);
  return false;
}

[[nodiscard]] PyObject* none_if(bool done) { return done ? py::none() : nullptr; }

}  // namespace

// ---- both directions ----

PipeTransport::PipeTransport(PyObject* self, Loop& loop)
    : self_(self), loop_object_(Ref::borrow(loop.self())), loop_(&loop) {}

bool PipeTransport::open(const PipeSpec& spec, const char* refusal) {
  ModuleState& state = loop_->state();
  Ref fileno = Ref::steal(PyObject_GetAttr(spec.pipe, state.str_fileno));
  Ref number = fileno ? Ref::steal(PyObject_CallNoArgs(fileno.get())) : Ref();
  if (!number) {
    return false;
  }
  const long value = PyLong_AsLong(number.get());
  if (value == -1 && PyErr_Occurred() != nullptr) {
    return false;
  }
  // A number that no descriptor has is the kernel's to refuse.
  fd_ = value < 0 || value > INT_MAX ? -1 : static_cast<int>(value);
  if (PyCFunction_Check(fileno.get())) {
    fileno_ = std::move(fileno);
  }
  pipe_ = Ref::borrow(spec.pipe);
  protocol_ = Ref::borrow(spec.protocol);
  opened_ = true;
  const IoResult looked = os::file_kind(fd_, kind_);
  if (!looked.ok()) {
    return raise_os_error(looked.error);
  }
  if (kind_ == os::FileKind::other) {
    // The file stays open, and its owner's.
    pipe_.reset();
    protocol_.reset();
    PyErr_SetString(PyExc_ValueError, refusal);
    return false;
  }
  const IoResult set = os::set_nonblocking(fd_);
  return set.ok() || raise_os_error(set.error);
}

// asyncio's order: connection_made, then watching, then the waiter, as three callbacks.
bool PipeTransport::schedule_start(const PipeSpec& spec, bool watches) {
  ModuleState& state = loop_->state();
  Ref made = Ref::steal(PyObject_GetAttr(spec.protocol, state.str_connection_made));
  if (!made || !loop_->schedule(made.get(), &self_, 1, nullptr)) {
    return false;
  }
  loop_->hold(self_);
  if (watches) {
    Ref add = Ref::steal(PyObject_GetAttr(self_, state.str__add_reader));
    // Not called with an error pending: a look-up that misses the cache would take it for its own.
    Ref ready = add ? Ref::steal(PyObject_GetAttr(self_, state.str__read_ready)) : Ref();
    Ref number = ready ? Ref::steal(PyLong_FromLong(fd_)) : Ref();
    PyObject* arguments[] = {number.get(), ready.get()};
    if (!number || !loop_->schedule(add.get(), arguments, 2, nullptr)) {
      return false;
    }
  }
  return schedule_waiter(*loop_, spec.waiter, nullptr);
}

bool PipeTransport::file_is_open() {
  if (!fileno_) {
    return has_pipe();
  }
  Ref number = Ref::steal(PyObject_CallNoArgs(fileno_.get()));
  const bool open = number && PyLong_AsLong(number.get()) == fd_;
  PyErr_Clear();
  return open;
}

IoResult PipeTransport::read(std::span<const iovec> parts) {
  if (!file_is_open()) {
    return IoResult::failure(EBADF);  // What the kernel says of a number that nobody has.
  }
  const IoResult result = loop_->engine().backend().read(fd_, parts);
  if (result.ok()) {
    loop_->engine().metrics().bytes_received.add(static_cast<std::size_t>(result.value));
  }
  return result;
}

bool PipeTransport::watch(Wanted what, PyObject* callback) {
  if (!loop_->check_open()) {
    return false;
  }
  if (!file_is_open()) {
    return raise_os_error(EBADF);
  }
  Ref handle = Ref::steal(loop_->add_watcher(fd_, what, callback, nullptr, 0, nullptr));
  return static_cast<bool>(handle);
}

// Only what is this transport's own: the number may be somebody else's by now.
bool PipeTransport::unwatch(Wanted what) {
  PyObject* handle = loop_->watcher_at(fd_, what);
  if (handle == nullptr || loop_->is_operation(handle)) {
    return true;
  }
  PyObject* callback = asyncio_part(handle).callback;
  if (callback == nullptr || !PyCFunction_Check(callback) ||
      PyCFunction_GET_SELF(callback) != self_) {
    return true;
  }
  return loop_->remove_watcher(fd_, what) >= 0;
}

bool PipeTransport::schedule_lost(PyObject* exception) {
  if (lost_scheduled_ || !pipe_) {
    return true;
  }
  if (!schedule_connection_lost(*loop_, self_, exception, nullptr)) {
    return false;
  }
  lost_scheduled_ = true;
  return true;
}

bool PipeTransport::lose(PyObject* exception) {
  if (!pipe_) {
    return true;
  }
  Ref self = Ref::borrow(self_);
  Ref protocol = protocol_.dup();
  Ref told = Ref::steal(
      PyObject_CallMethodOneArg(protocol.get(), loop_->state().str_connection_lost, exception));
  PendingError error = told ? PendingError() : PendingError::take();
  const bool closed = close_file();
  Ref old = std::move(protocol_);
  old.reset();
  loop_->let_go(self_);
  if (!error) {
    return closed;
  }
  if (closed) {
    error.restore();
    return false;
  }
  PendingError last = PendingError::take();
  PyException_SetContext(last.value(), py::new_ref(error.value()));
  last.restore();
  return false;
}

// The file is the descriptor's owner: one that was closed already closes nothing a second time,
// whoever has its number now.
bool PipeTransport::close_file() {
  Ref pipe = std::move(pipe_);
  Ref fileno = std::move(fileno_);
  if (!pipe) {
    return true;
  }
  Ref closed = Ref::steal(PyObject_CallMethodNoArgs(pipe.get(), loop_->state().str_close));
  return static_cast<bool>(closed);
}

void PipeTransport::finalize() {
  if (!pipe_) {
    return;
  }
  PendingError saved = PendingError::take();
  warn_unclosed(loop_->state(), self_);
  // What else is in this garbage may still call: it finds the transport closed.
  closing_ = true;
  if (!close_file()) {
    PyErr_WriteUnraisable(self_);
  }
  saved.restore();
}

void PipeTransport::set_pipe(PyObject* pipe) {
  Ref old_fileno = std::move(fileno_);
  Ref old = std::exchange(pipe_, Ref::borrow(pipe));
  if (pipe == nullptr) {
    loop_->let_go(self_);
  }
}

void PipeTransport::set_protocol_object(PyObject* protocol) {
  Ref old = std::exchange(protocol_, Ref::borrow(protocol));
}

int PipeTransport::traverse_shared(visitproc visit, void* arg) const {
  Py_VISIT(loop_object_.get());
  Py_VISIT(pipe_.get());
  Py_VISIT(fileno_.get());
  Py_VISIT(protocol_.get());
  return 0;
}

// Breaks the cycles. The loop stays, for whoever still calls.
void PipeTransport::clear_shared() noexcept {
  pipe_.reset();
  fileno_.reset();
  protocol_.reset();
}

// ---- reading ----

bool ReadPipeTransport::start(const PipeSpec& spec) {
  return open(spec, "Pipe transport is for pipes/sockets only.") && schedule_start(spec, true);
}

PyObject* ReadPipeTransport::add_reader(PyObject* callback) {
  return none_if(!is_reading() || watch(kWantReadable, callback));
}

PyObject* ReadPipeTransport::read_ready() {
  if (!has_pipe()) {
    return py::none();
  }
  if (!std::exchange(protocol_seen_, true) && !loop_->debug()) {
    // Streams of a debugging loop go the ordinary way, where every step can be seen.
    (void)feed_.attach(loop_->state(), protocol());
  }
  // Where much comes it lands in the bytes handed out, and what there is no room for in the scratch
  // buffer: one read brings as much as asyncio's, whatever the last one brought.
  Ref direct;
  std::array<iovec, 2> parts{iovec{loop_->scratch(), kReadMax}};
  std::size_t count = 1;
  if (!feed_.attached() && last_read_ >= kDirectReadFrom) {
    const std::size_t steps = (last_read_ + kDirectReadStep - 1) / kDirectReadStep;
    const std::size_t size = std::min(steps * kDirectReadStep, kReadMax);
    direct = Ref::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!direct) {
      return nullptr;
    }
    parts[1] = {parts[0].iov_base, kReadMax - size};
    parts[0] = {PyBytes_AS_STRING(direct.get()), size};
    count = parts[1].iov_len == 0 ? 1 : 2;
  }
  const IoResult result = read({parts.data(), count});
  if (!result.ok()) {
    return result.would_block() ? py::none() : fatal_error(result.error);
  }
  return result.value == 0 ? end_of_file()
                           : deliver(std::move(direct), static_cast<std::size_t>(result.value));
}

PyObject* ReadPipeTransport::deliver(Ref direct, std::size_t count) {
  ModuleState& state = loop_->state();
  if (feed_.attached()) {
    switch (feed_.feed(state, loop_->scratch(), count)) {
      case StreamFeed::Outcome::fed:
        return py::none();
      case StreamFeed::Outcome::failed:
        return nullptr;
      case StreamFeed::Outcome::ordinary:
        break;
    }
  }
  last_read_ = count;
  Ref bytes = bytes_read(std::move(direct), count);
  Ref receiver = Ref::borrow(protocol());
  Ref result = bytes ? Ref::steal(PyObject_CallMethodOneArg(receiver.get(), state.str_data_received,
                                                            bytes.get()))
                     : Ref();
  return none_if(static_cast<bool>(result));
}

Ref ReadPipeTransport::bytes_read(Ref direct, std::size_t count) {
  if (!direct) {
    return Ref::steal(PyBytes_FromStringAndSize(loop_->scratch(), static_cast<Py_ssize_t>(count)));
  }
  const auto room = static_cast<std::size_t>(PyBytes_GET_SIZE(direct.get()));
  PyObject* bytes = direct.release();
  // On failure it takes the object away, leaves null and sets the error.
  if (count != room && _PyBytes_Resize(&bytes, static_cast<Py_ssize_t>(count)) == 0 &&
      count > room) {
    std::memcpy(PyBytes_AS_STRING(bytes) + room, loop_->scratch(), count - room);
  }
  return Ref::steal(bytes);
}

PyObject* ReadPipeTransport::end_of_file() {
  log("_log_info", "%r was closed by peer");
  closing_ = true;
  Ref eof = unwatch(kWantReadable)
                ? Ref::steal(PyObject_GetAttr(protocol(), loop_->state().str_eof_received))
                : Ref();
  return none_if(eof && loop_->schedule(eof.get(), nullptr, 0, nullptr) && schedule_lost(Py_None));
}

PyObject* ReadPipeTransport::pause_reading() {
  if (!is_reading()) {
    return py::none();
  }
  paused_ = true;
  if (!unwatch(kWantReadable)) {
    return nullptr;
  }
  log("_log_debug", "%r pauses reading");
  return py::none();
}

PyObject* ReadPipeTransport::resume_reading() {
  if (closing_ || !paused_) {
    return py::none();
  }
  paused_ = false;
  Ref ready = Ref::steal(PyObject_GetAttr(self_, loop_->state().str__read_ready));
  if (!ready || !watch(kWantReadable, ready.get())) {
    return nullptr;
  }
  log("_log_debug", "%r resumes reading");
  return py::none();
}

PyObject* ReadPipeTransport::fatal_error(int error) {
  constexpr const char* kMessage = "Fatal read error on pipe transport";
  (void)raise_os_error(error);
  PendingError pending = PendingError::take();
  Ref exception = Ref::borrow(pending.value());
  if (error != EIO) {
    loop_->report(kMessage, std::move(pending), self_, protocol());
  } else if (loop_->debug()) {
    // How the end of a terminal's other side looks like.
    Ref logged = Ref::steal(PyObject_CallMethod(loop_->state().support, "_log_fatal_error", "OsO",
                                                self_, kMessage, exception.get()));
    if (!logged) {
      return nullptr;
    }
  }
  return none_if(close_with(exception.get()));
}

PyObject* ReadPipeTransport::close() { return none_if(closing_ || close_with(Py_None)); }

bool ReadPipeTransport::close_with(PyObject* exception) {
  closing_ = true;
  return unwatch(kWantReadable) && schedule_lost(exception);
}

PyObject* ReadPipeTransport::call_connection_lost(PyObject* exception) {
  const bool done = lose(exception);
  feed_.detach();
  return none_if(done);
}

bool ReadPipeTransport::set_protocol(PyObject* protocol) {
  protocol_seen_ = false;
  feed_.detach();
  set_protocol_object(protocol);
  return true;
}

int ReadPipeTransport::traverse(visitproc visit, void* arg) const {
  Py_VISIT(feed_.protocol());
  return traverse_shared(visit, arg);
}

void ReadPipeTransport::clear() noexcept {
  feed_.detach();
  clear_shared();
}

// ---- writing ----

WritePipeTransport::WritePipeTransport(PyObject* self, Loop& loop)
    : PipeTransport(self, loop), writer_(loop.engine().backend()) {}

WritePipeTransport::~WritePipeTransport() { drop_queue(); }

bool WritePipeTransport::start(const PipeSpec& spec) {
  if (!open(spec, "Pipe transport is only for pipes, sockets and character devices")) {
    return false;
  }
  // The end of whoever reads a pipe or a socket makes its writing end readable.
  return schedule_start(spec, kind() != os::FileKind::character_device);
}

PyObject* WritePipeTransport::add_reader(PyObject* callback) {
  // connection_made() may have ended the transport, unless it left something to write.
  const bool over = closing_ && writer_.empty();
  return none_if(over || watch(kWantReadable, callback));
}

PyObject* WritePipeTransport::read_ready() {
  if (!has_pipe()) {
    return py::none();
  }
  log("_log_info", "%r was closed by peer");
  if (writer_.empty()) {
    return none_if(close_with(Py_None));
  }
  Ref broken = Ref::steal(PyObject_CallNoArgs(PyExc_BrokenPipeError));
  return none_if(broken && close_with(broken.get()));
}

PyObject* WritePipeTransport::write(PyObject* data) {
  ModuleState& state = loop_->state();
  if (!OutgoingBytes::accepts(data)) {
    return PyObject_CallMethodOneArg(state.support, state.str__refuse_pipe_data, data);
  }
  OutgoingBytes outgoing;
  if (!outgoing.take(state, data)) {
    return nullptr;
  }
  if (outgoing.size() == 0) {
    return py::none();
  }
  if (lost_count_ != 0 || closing_) {
    return count_lost_write();
  }
  std::size_t sent = 0;
  if (writer_.empty()) {
    const IoResult result =
        file_is_open() ? writer_.write(descriptor_number(), outgoing.data(), outgoing.size())
                       : IoResult::failure(EBADF);
    if (!result.ok()) {
      ++lost_count_;
      return fatal_error(result.error);
    }
    sent = static_cast<std::size_t>(result.value);
    loop_->engine().metrics().bytes_sent.add(sent);
    if (sent == outgoing.size()) {
      return py::none();
    }
    Ref ready = Ref::steal(PyObject_GetAttr(self_, state.str__write_ready));
    if (!ready || !watch(kWantWritable, ready.get())) {
      return nullptr;
    }
  }
  return queue_rest(outgoing, sent);
}

PyObject* WritePipeTransport::queue_rest(OutgoingBytes& outgoing, std::size_t sent) {
  OutgoingBytes::Rest rest = outgoing.rest(sent);
  if (!rest.bytes) {
    // Half of it is out: nothing that follows may be taken for the rest.
    PendingError error = PendingError::take();
    (void)close_with(error.value());
    PyErr_Clear();
    error.restore();
    return nullptr;
  }
  PyObject* bytes = rest.bytes.get();
  writer_.queue(PyBytes_AS_STRING(bytes) + rest.offset,
                static_cast<std::size_t>(PyBytes_GET_SIZE(bytes)) - rest.offset, bytes);
  (void)rest.bytes.release();  // The queue's now.
  return none_if(judge_high_water());
}

// asyncio's own method does what is to be done; it is called only when that is likely to be
// something.
bool WritePipeTransport::judge_high_water() {
  const Base& flow = base();
  if (flow.protocol_paused == Py_True) {
    return true;
  }
  if (flow.high_water != nullptr && PyLong_CheckExact(flow.high_water)) {
    int overflow = 0;
    const long long high = PyLong_AsLongLongAndOverflow(flow.high_water, &overflow);
    if (overflow > 0 || (overflow == 0 && static_cast<long long>(queued_bytes()) <= high)) {
      return true;
    }
  }
  Ref self = Ref::borrow(self_);
  Ref judged =
      Ref::steal(PyObject_CallMethodNoArgs(self_, loop_->state().str__maybe_pause_protocol));
  return static_cast<bool>(judged);
}

bool WritePipeTransport::judge_low_water() {
  if (base().protocol_paused == Py_False) {
    return true;
  }
  Ref judged =
      Ref::steal(PyObject_CallMethodNoArgs(self_, loop_->state().str__maybe_resume_protocol));
  return static_cast<bool>(judged);
}

PyObject* WritePipeTransport::write_ready() {
  if (!has_pipe() || writer_.empty()) {
    return py::none();
  }
  const IoResult result = file_is_open()
                              ? writer_.write_queued(descriptor_number(),
                                                     [](WriteQueue::Owner owner) {
                                                       Py_DECREF(static_cast<PyObject*>(owner));
                                                     })
                              : IoResult::failure(EBADF);
  if (!result.ok()) {
    drop_queue();
    ++lost_count_;
    return unwatch(kWantWritable) ? fatal_error(result.error) : nullptr;
  }
  loop_->engine().metrics().bytes_sent.add(static_cast<std::size_t>(result.value));
  if (!writer_.empty()) {
    return py::none();
  }
  if (!unwatch(kWantWritable) || !judge_low_water()) {
    return nullptr;
  }
  if (!closing_) {
    return py::none();
  }
  return unwatch(kWantReadable) ? call_connection_lost(Py_None) : nullptr;
}

PyObject* WritePipeTransport::write_eof() {
  if (closing_) {
    return py::none();
  }
  closing_ = true;
  return none_if(!writer_.empty() || (unwatch(kWantReadable) && schedule_lost(Py_None)));
}

PyObject* WritePipeTransport::close() { return write_eof(); }

PyObject* WritePipeTransport::abort() { return none_if(close_with(Py_None)); }

bool WritePipeTransport::close_with(PyObject* exception) {
  closing_ = true;
  const bool waited = !writer_.empty();
  drop_queue();
  return (!waited || unwatch(kWantWritable)) && unwatch(kWantReadable) && schedule_lost(exception);
}

PyObject* WritePipeTransport::count_lost_write() {
  ModuleState& state = loop_->state();
  if (!warn_of_lost_writes(state, lost_count_, state.str__log_closed_pipe_write)) {
    return nullptr;
  }
  if (lost_count_ != UINT32_MAX) {  // Zero would mean that nothing was lost.
    ++lost_count_;
  }
  return py::none();
}

// An error of the system is the end of the transport, and of interest only while debugging.
PyObject* WritePipeTransport::fatal_error(int error) {
  (void)raise_os_error(error);
  PendingError pending = PendingError::take();
  if (loop_->debug()) {
    Ref logged =
        Ref::steal(PyObject_CallMethod(loop_->state().support, "_log_fatal_error", "OsO", self_,
                                       "Fatal write error on pipe transport", pending.value()));
    if (!logged) {
      return nullptr;
    }
  }
  return none_if(close_with(pending.value()));
}

PyObject* WritePipeTransport::call_connection_lost(PyObject* exception) {
  const bool done = lose(exception);
  Ref old = Ref::steal(std::exchange(base().loop, py::none()));
  return none_if(done);
}

void WritePipeTransport::drop_queue() noexcept {
  writer_.clear(
      [](WriteQueue::Owner owner) { const Ref bytes = Ref::steal(static_cast<PyObject*>(owner)); });
}

int WritePipeTransport::traverse(visitproc visit, void* arg) const {
  return traverse_shared(visit, arg);
}

void WritePipeTransport::clear() noexcept { clear_shared(); }

}  // namespace cpploop

#include "binding/loop.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <new>

#include "binding/handle.h"
#include "binding/py/guard.h"
#include "binding/sock_operation.h"

namespace cpploop {
namespace {

using py::PendingError;
using py::Ref;

[[nodiscard]] bool runtime_is_finalizing() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

[[nodiscard]] PyObject* as_object(Token token) noexcept { return static_cast<PyObject*>(token); }

// Collected before the list is made: making it can run any code.
[[nodiscard]] PyObject* as_list(std::vector<Ref>& objects) {
  Ref list = Ref::steal(PyList_New(static_cast<Py_ssize_t>(objects.size())));
  if (!list) {
    return nullptr;
  }
  for (std::size_t i = 0; i < objects.size(); ++i) {
    PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), objects[i].release());
  }
  return list.release();
}

}  // namespace

std::int64_t deadline_ns_from_seconds(double seconds) noexcept {
  constexpr double kLimit = 9.2e18;  // Just inside of what an int64 holds.
  const double ns = std::ceil(seconds * 1e9);
  if (ns >= kLimit) {
    return kNever - 1;
  }
  if (ns <= -kLimit) {
    return INT64_MIN;
  }
  const auto deadline = static_cast<std::int64_t>(ns);
  // The product was rounded; a nanosecond more makes sure that the clock shows at least `seconds`.
  return static_cast<double>(deadline) / 1e9 < seconds ? deadline + 1 : deadline;
}

Loop::Loop(PyObject* self, ModuleState& state, BackendChoice backend)
    : module_(Ref::borrow(state.module)),
      self_(self),
      state_(state),
      engine_(static_cast<Host&>(*this), backend),
      fork_generation_(os::fork_generation()) {
  if (!py::kFreeThreaded) {
    engine_.inbox().callers_are_excluded();
  }
}

Loop::~Loop() {
  close();
  Py_CLEAR(task_factory);
}

// ---- running ----

// Marks whose turns they are while they last. The engine knows one thread: a second one that came
// in while the first waits in the kernel would take its thread state away.
class Loop::Turns {
 public:
  explicit Turns(Loop& loop) noexcept : loop_(loop), me_(PyThread_get_thread_ident()) {
    outer_ = loop.turning_thread_.load() == me_;
    unsigned long nobody = 0;
    mine_ = outer_ || loop.turning_thread_.compare_exchange_strong(nobody, me_);
  }
  ~Turns() {
    if (mine_ && !outer_) {
      loop_.track_queued_handles();
      loop_.turning_thread_.store(0);
    }
  }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // False with RuntimeError set when another thread is at it.
  [[nodiscard]] bool may_begin() const noexcept {
    if (!mine_) {
      PyErr_SetString(PyExc_RuntimeError, "This event loop is run by another thread");
    }
    return mine_;
  }

 private:
  Loop& loop_;
  const unsigned long me_;
  bool outer_ = false;
  bool mine_ = false;
};

bool Loop::run() {
  const Turns turns(*this);
  return turns.may_begin() && ended_well(engine_.run());
}

bool Loop::run_once() {
  const Turns turns(*this);
  return turns.may_begin() && ended_well(engine_.turn_once());
}

bool Loop::ended_well(int error) {
  if (forked()) {
    // The callback that forked returned in the child: nothing of the parent's is to be touched.
    return check_open();
  }
  if (leaving_) {
    PendingError leaving = std::move(leaving_);
    leaving.restore();
    return false;
  }
  if (error != 0) {
    py::set_os_error(error);
    return false;
  }
  return true;
}

void Loop::about_to_block() noexcept {
  finalizing_when_blocked_ = runtime_is_finalizing();
  trim_handle_lists(state());
  if (tracer_) [[unlikely]] {
    blocked_ns_ = monotonic_now_ns();
  }
  saved_thread_ = PyEval_SaveThread();
}

void Loop::woke_up() {
  // While the runtime finalises, a daemon thread must not come back. Python 3.14 parks it here
  // itself; before, it would end the thread in the middle of our frames.
  // The thread that finalises may run a loop itself, in a finaliser.
  if (runtime_is_finalizing() && !finalizing_when_blocked_) {
    py::park();
  }
  // It may also begin while we ask.
  py::unless_thread_ends([this] { PyEval_RestoreThread(std::exchange(saved_thread_, nullptr)); });
  if (tracer_ && blocked_ns_ != 0) [[unlikely]] {
    tracer_->record(Tracer::Kind::poll, Ref(), blocked_ns_, monotonic_now_ns(),
                    engine_.metrics().turns.get());
  }
}

void Loop::stayed_busy() {
  // Callbacks that are all native never meet the interpreter's own checks.
  wait_interrupted();
  about_to_block();
  woke_up();
}

void Loop::wait_interrupted() {
  if (PyErr_CheckSignals() != 0) {
    leave_with_error();
  }
}

void Loop::leave_with_error() { leave_with(PendingError::take()); }

void Loop::leave_with(PendingError error) {
  // The first one leaves; a later one that comes while the turn ends is only its consequence.
  if (!leaving_) {
    leaving_ = std::move(error);
  }
  engine_.interrupt();
}

void Loop::raise_leaving() {
  PendingError error = std::move(leaving_);
  engine_.take_back_interrupt();
  error.restore();
}

void Loop::run(Token token) {
  Ref handle = Ref::steal(as_object(token));
  if (is_watched()) [[unlikely]] {
    run_watched(handle.get());
  } else if (!run_handle(handle.get())) [[unlikely]] {
    callback_failed(handle.get());
  }
  give_up(std::move(handle));
}

void Loop::notify(Token token) {
  Ref handle = Ref::borrow(as_object(token));
  if (is_operation(handle.get())) {
    note_io(handle.get());
    sock_operation_of(handle.get()).on_ready();
  } else if (handle_cancelled(handle.get())) [[unlikely]] {
    // What _add_reader() returned was cancelled. As on asyncio that ends the watching; otherwise
    // the descriptor would report, and nobody take what it reports, for ever.
    const ReadinessWatchers::Place place = engine_.watchers().place_of(token);
    if (place.fd >= 0 && remove_watcher(place.fd, place.what) < 0) {
      callback_failed(handle.get());
    }
  } else if (is_watched()) [[unlikely]] {
    run_watched(handle.get());
  } else if (!run_handle(handle.get())) [[unlikely]] {
    callback_failed(handle.get());
  }
}

void Loop::drop(Token token) noexcept { give_up(Ref::steal(as_object(token))); }

// ---- handles and the collector ----

// While a loop runs nothing can make garbage of what it has queued, and a queued handle that the
// collector does not know saves it the way through a hundred thousand timers. It learns of the
// handle when somebody else has it and the loop gives it up, or when the loop ends running and may
// be garbage itself.
bool Loop::tracks_later() noexcept {
  if (py::kFreeThreaded || turning_thread_.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  has_untracked_ = true;
  return true;
}

void Loop::give_up(Ref handle) noexcept {
  if (!py::kFreeThreaded && Py_REFCNT(handle.get()) > 1) {
    track_handle(handle.get());
  }
}

void Loop::track_queued_handles() noexcept {
  if (!std::exchange(has_untracked_, false)) {
    return;
  }
  const auto track = [](Token token) { track_handle(as_object(token)); };
  const auto track_entry = [&](const ReadyEntry& entry) {
    if (entry.kind == ReadyEntry::Kind::token) {
      track(entry.token);
    }
  };
  engine_.ready().for_each(track_entry);
  engine_.inbox().for_each(track_entry);
  engine_.timers().for_each([&](Token token, std::int64_t) { track(token); });
}

void Loop::run_watched(PyObject* handle) {
  Ref name = tracer_ ? tracer_->name_of(handle) : Ref();
  const std::int64_t from_ns = monotonic_now_ns();
  if (debug_) {
    run_timed(handle);
  } else if (!run_handle(handle)) {
    callback_failed(handle);
  }
  if (tracer_) {  // It may have been stopped in there.
    tracer_->record(Tracer::Kind::callback, std::move(name), from_ns, monotonic_now_ns(),
                    engine_.metrics().turns.get());
  }
}

// Debug mode: the handle is named in error reports, and a slow callback is logged.
void Loop::run_timed(PyObject* handle) {
  if (handle_cancelled(handle)) {
    return;
  }
  io_object_.reset();
  if (PyObject_SetAttrString(self_, "_current_handle", handle) != 0) {
    PyErr_Clear();
  }
  const std::int64_t started_ns = engine_.now_ns();
  if (!run_handle(handle)) {
    callback_failed(handle);
  }
  const double seconds = static_cast<double>(engine_.now_ns() - started_ns) / 1e9;
  Ref result =
      Ref::steal(PyObject_CallMethod(state_.support, "log_if_slow", "OOd", self_, handle, seconds));
  if (!result) {
    leave_with_error();
  }
  if (PyObject_SetAttrString(self_, "_current_handle", Py_None) != 0) {
    PyErr_Clear();
  }
}

void Loop::io_begins() {
  io_object_.reset();
  io_started_ns_ = monotonic_now_ns();
}

void Loop::io_ended() {
  Ref object = std::move(io_object_);
  if (!object) {
    return;
  }
  const std::int64_t now_ns = monotonic_now_ns();
  if (tracer_) {
    tracer_->record(Tracer::Kind::io, tracer_->name_of(object.get()), io_started_ns_, now_ns,
                    engine_.metrics().turns.get());
  }
  if (!debug_) {
    return;
  }
  const double seconds = static_cast<double>(now_ns - io_started_ns_) / 1e9;
  Ref result = Ref::steal(
      PyObject_CallMethod(state_.support, "log_if_slow", "OOd", self_, object.get(), seconds));
  if (!result) {
    leave_with_error();
  }
}

void Loop::start_trace(PyObject* name_of, std::size_t limit) {
  tracer_ = std::make_unique<Tracer>(name_of, limit);
  blocked_ns_ = 0;  // Of an earlier trace, when another thread begins this one during a wait.
  engine_.time_callbacks(true);
}

PyObject* Loop::stop_trace() {
  const std::unique_ptr<Tracer> tracer = std::move(tracer_);
  engine_.time_callbacks(debug_);
  return tracer ? tracer->events() : py::none();
}

void Loop::callback_failed(PyObject* handle) {
  report_callback(PendingError::take(), "_callback_failed", handle);
}

void Loop::io_callback_failed(const char* name) {
  PendingError error = PendingError::take();
  const Ref text = Ref::steal(PyUnicode_FromString(name));
  if (!text) {
    leave_with_error();
    return;
  }
  report_callback(std::move(error), "_io_callback_failed", text.get());
}

void Loop::report_callback(PendingError error, const char* reporter, PyObject* callback) {
  if (error.must_leave_loop()) {
    leave_with(std::move(error));
    return;
  }
  Ref result = Ref::steal(
      PyObject_CallMethod(state_.support, reporter, "OOO", self_, callback, error.value()));
  if (!result) {
    leave_with_error();
  }
}

void Loop::report(const char* message, PendingError error, PyObject* transport,
                  PyObject* protocol) {
  if (error.must_leave_loop()) {
    leave_with(std::move(error));
    return;
  }
  Ref context = Ref::steal(PyDict_New());
  Ref text = Ref::steal(PyUnicode_FromString(message));
  const bool built =
      context && text && PyDict_SetItem(context.get(), state_.str_message, text.get()) == 0 &&
      PyDict_SetItem(context.get(), state_.str_exception, error.value()) == 0 &&
      (transport == nullptr ||
       PyDict_SetItem(context.get(), state_.str_transport, transport) == 0) &&
      (protocol == nullptr || PyDict_SetItem(context.get(), state_.str_protocol, protocol) == 0);
  Ref result = built ? Ref::steal(PyObject_CallMethodOneArg(
                           self_, state_.str_call_exception_handler, context.get()))
                     : Ref();
  if (!result) {
    leave_with_error();
  }
}

// ---- scheduling ----

PyObject* Loop::call_soon(PyObject* callback, PyObject* const* args, Py_ssize_t arg_count,
                          PyObject* context) {
  Ref handle =
      Ref::steal(new_handle(state_, {self_, callback, args, arg_count, context, tracks_later()}));
  if (!handle) {
    return nullptr;
  }
  // One reference for the queue, one for the caller.
  Ref result = handle.dup();
  locked([&] { engine_.push_ready(ReadyEntry::of_token(handle.get())); });
  (void)handle.release();
  return result.release();
}

PyObject* Loop::call_soon_threadsafe(PyObject* callback, PyObject* const* args,
                                     Py_ssize_t arg_count, PyObject* context) {
  if (!check_open() || !check_callback(callback, "call_soon_threadsafe")) {
    return nullptr;
  }
  Ref handle = Ref::steal(
      new_threadsafe_handle(state_, {self_, callback, args, arg_count, context, tracks_later()}));
  if (!handle) {
    return nullptr;
  }
  // The caller's reference first: once posted, the loop may run and drop its own at once.
  Ref result = handle.dup();
  if (thread_id_ == PyThread_get_thread_ident()) {
    // The loop's own thread is awake by definition.
    engine_.push_ready(ReadyEntry::of_token(handle.get()));
  } else if (!engine_.inbox().post(ReadyEntry::of_token(handle.get()))) {
    (void)refuse_closed_or_forked();
    return nullptr;
  }
  (void)handle.release();
  if (turning_thread_.load(std::memory_order_relaxed) == 0) [[unlikely]] {
    track_handle(result.get());  // The loop may have ended running meanwhile.
  }
  return result.release();
}

PyObject* Loop::call_at(const DueTime& when, PyObject* callback, PyObject* const* args,
                        Py_ssize_t arg_count, PyObject* context) {
  if (std::isnan(when.seconds)) {
    PyErr_SetString(PyExc_ValueError, "Invalid value NaN (not a number)");
    return nullptr;
  }
  Ref handle = Ref::steal(
      new_timer_handle(state_, {self_, callback, args, arg_count, context, tracks_later()}, when));
  if (!handle) {
    return nullptr;
  }
  Ref result = handle.dup();
  locked([&] {
    engine_.timers().push(deadline_ns_from_seconds(when.seconds), handle.get());
    payload_of(handle.get()).scheduled = true;
  });
  (void)handle.release();
  return result.release();
}

bool Loop::schedule(PyObject* callback, PyObject* const* args, Py_ssize_t arg_count,
                    PyObject* context) {
  if (!overrides().call_soon) {
    if (!check_open()) {
      return false;
    }
    Ref handle = Ref::steal(call_soon(callback, args, arg_count, context));
    return static_cast<bool>(handle);
  }
  Ref method = Ref::steal(PyObject_GetAttr(self_, state_.str_call_soon));
  Ref tuple = Ref::steal(PyTuple_New(arg_count + 1));
  if (!method || !tuple) {
    return false;
  }
  PyTuple_SET_ITEM(tuple.get(), 0, py::new_ref(callback));
  for (Py_ssize_t i = 0; i < arg_count; ++i) {
    PyTuple_SET_ITEM(tuple.get(), i + 1, py::new_ref(args[i]));
  }
  Ref keywords;
  if (context != nullptr) {
    keywords = Ref::steal(PyDict_New());
    if (!keywords || PyDict_SetItem(keywords.get(), state_.str_context, context) != 0) {
      return false;
    }
  }
  Ref result = Ref::steal(PyObject_Call(method.get(), tuple.get(), keywords.get()));
  return static_cast<bool>(result);
}

// ---- what is queued ----

std::size_t Loop::ready_count() {
  std::size_t count = engine_.ready().size();
  engine_.inbox().for_each([&](const ReadyEntry&) { ++count; });
  return count;
}

PyObject* Loop::ready_handles() {
  std::vector<Ref> handles;
  const auto collect = [&](const ReadyEntry& entry) {
    if (entry.kind == ReadyEntry::Kind::token) {
      handles.push_back(Ref::borrow(as_object(entry.token)));
    }
  };
  engine_.ready().for_each(collect);
  engine_.inbox().for_each(collect);
  return as_list(handles);
}

PyObject* Loop::scheduled_handles() {
  std::vector<Ref> handles;
  locked([&] {
    for (const Token token : engine_.timers().in_order()) {
      handles.push_back(Ref::borrow(as_object(token)));
    }
  });
  return as_list(handles);
}

PyObject* Loop::open_transports() {
  std::vector<Ref> open;
  for (PyObject* transport : transports_) {
    if (transport != nullptr) {
      open.push_back(Ref::borrow(transport));
    }
  }
  for (PyObject* transport : held_) {
    open.push_back(Ref::borrow(transport));
  }
  return as_list(open);
}

bool Loop::append_ready(PyObject* handle) {
  const PyTypeObject* type = Py_TYPE(handle);
  const bool own = type == state_.handle_type || type == state_.timer_handle_type ||
                   (type == state_.threadsafe_handle_type && type != nullptr);
  if (own && loop_of_handle(handle) == self_) {
    Ref queued = Ref::borrow(handle);
    locked([&] { engine_.push_ready(ReadyEntry::of_token(handle)); });
    (void)queued.release();
    return true;
  }
  Ref run = Ref::steal(PyObject_GetAttr(state_.support, state_.str__run_unless_cancelled));
  Ref queued = run ? Ref::steal(call_soon(run.get(), &handle, 1, nullptr)) : Ref();
  return static_cast<bool>(queued);
}

void Loop::timer_cancelled(PyObject* handle) {
  if (py::kFreeThreaded && thread_id_ != 0 && thread_id_ != PyThread_get_thread_ident()) {
    return;  // The heap is the loop thread's; it finds the handle cancelled when it is due.
  }
  Ref removed;  // The heap's reference; the caller has its own.
  locked([&] {
    HandlePayload& payload = payload_of(handle);
    if (!payload.scheduled) {
      return;
    }
    if (engine_.timers().remove_if_last(handle)) {
      payload.scheduled = false;
      removed = Ref::steal(handle);
      return;
    }
    payload.counted = true;
    engine_.timers().note_cancelled();
  });
  if (removed) {
    give_up(std::move(removed));
  }
}

bool Loop::runs_elsewhere(PyObject* handle) const {
#if PY_VERSION_HEX >= 0x030E0000
  return std::atomic_ref(payload_of(handle).running).load() &&
         thread_id_ != PyThread_get_thread_ident();
#else
  (void)handle;
  return false;  // asyncio's older handles do not wait.
#endif
}

void Loop::wait_for_callback(PyObject* handle) {
  ++callback_waiters_;  // With the interpreter's lock, where there is one; see callback_over().
  PyThreadState* thread = PyEval_SaveThread();
  {
    std::unique_lock lock(callback_mutex_);
    callback_over_.wait(lock, [&] { return !std::atomic_ref(payload_of(handle).running).load(); });
  }
  PyEval_RestoreThread(thread);
  --callback_waiters_;
}

// Either the waiter counts itself before this looks, or it finds the callback over when it looks:
// the interpreter's lock puts the two in an order, and without one they are ordered themselves.
void Loop::callback_over(PyObject* handle) {
  std::atomic_ref(payload_of(handle).running).store(false, kRunningOrder);
  if (callback_waiters_.load(kRunningOrder) != 0) {
    {
      const std::lock_guard lock(callback_mutex_);
    }
    callback_over_.notify_all();
  }
}

bool Loop::timer_left_heap(Token token) noexcept {
  HandlePayload& payload = payload_of(as_object(token));
  payload.scheduled = false;
  return payload.counted;
}

bool Loop::is_cancelled(Token token) const noexcept { return payload_of(as_object(token)).counted; }

std::int64_t Loop::now_ns() {
  Ref now = Ref::steal(PyObject_CallMethodNoArgs(self_, state_.str_time));
  const double seconds = now ? PyFloat_AsDouble(now.get()) : -1.0;
  if (PyErr_Occurred() != nullptr) {
    leave_with_error();
    return 0;
  }
  // Rounded as deadlines are, so that a timer is due exactly when this clock says so.
  return std::isnan(seconds) ? 0 : deadline_ns_from_seconds(seconds);
}

bool Loop::check_callback_in_debug(PyObject* callback, const char* method) {
  Ref name = Ref::steal(PyUnicode_FromString(method));
  Ref result = name ? Ref::steal(PyObject_CallMethodObjArgs(self_, state_.str__check_callback,
                                                            callback, name.get(), nullptr))
                    : Ref();
  return static_cast<bool>(result);
}

// ---- watchers ----

PyObject* Loop::add_watcher(int fd, Wanted what, PyObject* callback, PyObject* const* args,
                            Py_ssize_t arg_count, PyObject* context) {
  Ref handle = Ref::steal(new_handle(state_, {self_, callback, args, arg_count, context}));
  if (!handle) {
    return nullptr;
  }
  const ReadinessWatchers::Added added = engine_.watchers().add(fd, what, handle.get());
  if (added.error != 0) {
    py::set_os_error(added.error);
    return nullptr;
  }
  Ref result = handle.dup();
  (void)handle.release();  // The watchers' now.
  if (added.replaced != nullptr) {
    Ref replaced = Ref::steal(as_object(added.replaced));
    if (!cancel_watcher(replaced.get())) {
      return nullptr;
    }
  }
  return result.release();
}

bool Loop::watch_process(pid_t process, PyObject* callback) {
  const Ref handle = Ref::steal(new_handle(state_, {self_, callback, nullptr, 0, nullptr}));
  return handle &&
         added_watcher(engine_.watchers().add_process(process, handle.get()), handle.get());
}

void Loop::unwatch_process(pid_t process) noexcept {
  const Ref handle = Ref::steal(as_object(engine_.watchers().remove_process(process)));
}

bool Loop::watch(int fd, Wanted what, PyObject* operation) {
  return added_watcher(engine_.watchers().add(fd, what, operation), operation);
}

bool Loop::added_watcher(const ReadinessWatchers::Added& added, PyObject* operation) {
  if (added.error != 0) {
    py::set_os_error(added.error);
    return false;
  }
  Py_INCREF(operation);  // The watchers'.
  Ref replaced = Ref::steal(as_object(added.replaced));
  return !replaced || cancel_watcher(replaced.get());
}

void Loop::unwatch(int fd, Wanted what, PyObject* operation) noexcept {
  if (engine_.watchers().at(fd, what) == operation) {
    const Ref watcher = Ref::steal(as_object(engine_.watchers().remove(fd, what)));
  }
}

bool Loop::watch_after_read(int fd, PyObject* sock, PyObject* operation) {
  // A socket object keeps its descriptor for life, and there is one plain weak reference to it: the
  // same reference, which is held here, means the same file.
  Ref socket = Ref::steal(PyWeakref_NewRef(sock, nullptr));
  if (!socket) {
    return false;
  }
  const auto index = static_cast<std::size_t>(fd);
  if (index >= resting_sockets_.size()) {
    resting_sockets_.resize(index + 1);
  }
  const bool same_file = resting_sockets_[index].get() == socket.get();
  resting_sockets_[index] = std::move(socket);
  return added_watcher(engine_.watchers().add_after_read(fd, operation, same_file), operation);
}

void Loop::rest(int fd, PyObject* operation) noexcept {
  if (engine_.watchers().at(fd, kWantReadable) == operation) {
    const Ref watcher = Ref::steal(as_object(engine_.watchers().rest(fd)));
  }
}

// An operation needs not be told: it stays suspended, as asyncio's coroutine would.
bool Loop::cancel_watcher(PyObject* watcher) {
  return is_operation(watcher) || cancel_handle(watcher);
}

void Loop::remember_descriptor(PyObject* object, int fd) {
  for (auto& [known, number] : watched_objects_) {
    if (known.get() == object) {
      number = fd;
      return;
    }
  }
  watched_objects_.emplace_back(Ref::borrow(object), fd);
}

int Loop::descriptor_when_added(PyObject* object) const noexcept {
  for (const auto& [known, number] : watched_objects_) {
    if (known.get() == object) {
      return number;
    }
  }
  return -1;
}

PyObject* Loop::watcher_at(int fd, Wanted what) const noexcept {
  return as_object(engine_.watchers().at(fd, what));
}

int Loop::remove_watcher(int fd, Wanted what) {
  Ref handle = Ref::steal(as_object(engine_.watchers().remove(fd, what)));
  if (!handle) {
    return 0;
  }
  std::vector<Ref> forgotten;
  if (!engine_.watchers().has(fd, kWantReadable) && !engine_.watchers().has(fd, kWantWritable)) {
    std::erase_if(watched_objects_, [&](auto& known) {
      if (known.second != fd) {
        return false;
      }
      forgotten.push_back(std::move(known.first));
      return true;
    });
  }
  return cancel_watcher(handle.get()) ? 1 : -1;
}

// ---- transports ----

PyObject* Loop::transport_at(int fd) const noexcept {
  return fd >= 0 && static_cast<std::size_t>(fd) < transports_.size()
             ? transports_[static_cast<std::size_t>(fd)]
             : nullptr;
}

void Loop::hold_transport(int fd, PyObject* transport) {
  const auto index = static_cast<std::size_t>(fd);
  if (index >= transports_.size()) {
    transports_.resize(index + 1);
  }
  Ref old = Ref::steal(std::exchange(transports_[index], py::new_ref(transport)));
}

void Loop::drop_transport(int fd, PyObject* transport) noexcept {
  if (transport_at(fd) == transport) {
    Ref held = Ref::steal(std::exchange(transports_[static_cast<std::size_t>(fd)], nullptr));
  }
}

void Loop::hold(PyObject* transport) {
  if (held_.insert(transport).second) {
    Py_INCREF(transport);
  }
}

void Loop::let_go(PyObject* transport) noexcept {
  if (held_.erase(transport) != 0) {
    const Ref held = Ref::steal(transport);
  }
}

char* Loop::scratch() {
  if (scratch_ == nullptr) {
    scratch_ = std::make_unique_for_overwrite<char[]>(kScratchSize);
  }
  return scratch_.get();
}

// ---- closing, checks ----

void Loop::close() {
  if (std::exchange(closed_, true)) {
    return;
  }
  if (forked()) {
    engine_.abandon_after_fork();
  }
  engine_.close();
  const auto watched = std::move(watched_objects_);
  watched_objects_.clear();
  std::vector<PyObject*> transports = std::move(transports_);
  transports_.clear();
  for (PyObject* transport : transports) {
    Py_XDECREF(transport);
  }
  const auto held = std::move(held_);
  held_.clear();
  for (PyObject* transport : held) {
    Py_DECREF(transport);
  }
  contexts_.clear();
}

bool Loop::refuse_closed_or_forked() noexcept {
  PyErr_SetString(PyExc_RuntimeError,
                  !forked()
                      ? "Event loop is closed"
                      : "Event loop was inherited through fork(): make a new one in this process");
  return false;
}

bool Loop::refuse_wrong_thread() noexcept {
  if (thread_id_ == 0 || thread_id_ == PyThread_get_thread_ident()) {
    return true;
  }
  PyErr_SetString(PyExc_RuntimeError,
                  "Non-thread-safe operation invoked on an event loop other than the current one");
  return false;
}

PyObject* Loop::thread_id_object() {
  return thread_id_ == 0 ? py::none() : PyLong_FromUnsignedLong(thread_id_);
}

bool Loop::set_thread_id(PyObject* value) {
  if (value == nullptr || value == Py_None) {
    thread_id_ = 0;
    return true;
  }
  const unsigned long id = PyLong_AsUnsignedLong(value);
  if (id == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) {
    return false;
  }
  thread_id_ = id;
  return true;
}

int Loop::traverse(visitproc visit, void* arg) {
  int result = 0;
  const auto visit_one = [&](PyObject* object) {
    if (object != nullptr && result == 0) {
      result = visit(object, arg);
    }
  };
  const auto visit_entry = [&](const ReadyEntry& entry) {
    if (entry.kind == ReadyEntry::Kind::token) {
      visit_one(as_object(entry.token));
    }
  };
  visit_one(module_.get());
  visit_one(tracer_ ? tracer_->function() : nullptr);
  engine_.ready().for_each(visit_entry);
  engine_.inbox().for_each(visit_entry);
  engine_.timers().for_each([&](Token token, std::int64_t) { visit_one(as_object(token)); });
  engine_.watchers().for_each([&](Token token) { visit_one(as_object(token)); });
  for (PyObject* transport : transports_) {
    visit_one(transport);
  }
  for (PyObject* transport : held_) {
    visit_one(transport);
  }
  for (const auto& [object, number] : watched_objects_) {
    visit_one(object.get());
  }
  visit_one(task_factory);
  visit_one(leaving_.value());
  visit_one(io_object_.get());
  return result != 0 ? result : contexts_.traverse(visit, arg);
}

void Loop::clear() {
  close();
  Py_CLEAR(task_factory);
  contexts_.clear();
  leaving_ = PendingError();
  io_object_.reset();
  tracer_.reset();
}

}  // namespace cpploop

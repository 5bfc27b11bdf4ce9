// The Python type _native.Loop: entry points that check their arguments and hand over to Loop.

#include <algorithm>
#include <array>
#include <climits>
#include <span>
#include <string_view>
#include <vector>

#include "binding/datagram_transport.h"
#include "binding/handle.h"
#include "binding/loop.h"
#include "binding/pipe_transport.h"
#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/python_socket.h"
#include "binding/resolving.h"
#include "binding/sock_operation.h"
#include "binding/stream_transport.h"

namespace cpploop {
namespace {

using py::CallArgs;
using py::Ref;

// ---- arguments ----

// callback, *args and the keyword context, behind `leading` positional parameters.
struct CallbackCall {
  PyObject* leading = nullptr;
  PyObject* callback = nullptr;
  PyObject* const* args = nullptr;
  Py_ssize_t arg_count = 0;
  PyObject* context = nullptr;
};

// asyncio's C code names the context by a string of its own, which is not the interned one.
[[nodiscard]] bool names_the_context(ModuleState& state, PyObject* name) noexcept {
  constexpr std::string_view kContext = "context";
  return name == state.str_context ||
         (PyUnicode_IS_COMPACT_ASCII(name) &&
          kContext == std::string_view(static_cast<const char*>(PyUnicode_DATA(name)),
                                       static_cast<std::size_t>(PyUnicode_GET_LENGTH(name))));
}

// Keywords other than context: allowed by asyncio's signatures, met in practice hardly ever.
[[nodiscard]] bool take_keyword(ModuleState& state, const char* function, PyObject* leading_name,
                                PyObject* name, PyObject* value, CallbackCall& call) {
  PyObject** target = nullptr;
  if (names_the_context(state, name)) {
    target = &call.context;
  } else if (PyUnicode_Compare(name, state.str_callback) == 0) {
    target = &call.callback;
  } else if (leading_name != nullptr && PyUnicode_Compare(name, leading_name) == 0) {
    target = &call.leading;
  }
  if (target == nullptr) {
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
    return false;
  }
  if (*target != nullptr) {
    PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", function, name);
    return false;
  }
  *target = value;
  return true;
}

[[nodiscard]] bool parse_callback_call(ModuleState& state, const char* function,
                                       PyObject* leading_name, const CallArgs& args,
                                       CallbackCall& call) {
  Py_ssize_t used = 0;
  if (leading_name != nullptr && args.positional > used) {
    call.leading = args.values[used++];
  }
  if (args.positional > used) {
    call.callback = args.values[used++];
    call.args = args.values + used;
    call.arg_count = args.positional - used;
  }
  for (Py_ssize_t i = 0; i < args.keyword_count(); ++i) {
    PyObject* name = args.keyword_name(i);
    if (names_the_context(state, name) && call.context == nullptr) [[likely]] {
      call.context = args.keyword_value(i);
    } else if (!take_keyword(state, function, leading_name, name, args.keyword_value(i), call)) {
      return false;
    }
  }
  if (leading_name != nullptr && call.leading == nullptr) {
    return py::refuse_missing(function, PyUnicode_AsUTF8(leading_name)) != nullptr;
  }
  if (call.callback == nullptr) {
    return py::refuse_missing(function, "callback") != nullptr;
  }
  if (call.context == Py_None) {
    call.context = nullptr;
  }
  if (call.context != nullptr && !PyContext_CheckExact(call.context)) {
    PyErr_Format(PyExc_TypeError,
                 "%s() argument 'context' must be a contextvars.Context, not %.200s", function,
                 Py_TYPE(call.context)->tp_name);
    return false;
  }
  return true;
}

// A descriptor number from an int or an object with fileno(), as selectors take it.
[[nodiscard]] int descriptor_of(PyObject* object) {
  if (PyLong_Check(object)) {
    const long fd = PyLong_AsLong(object);
    if (fd == -1 && PyErr_Occurred() != nullptr) {
      return -1;
    }
    if (fd > INT_MAX) {
      PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
      return -1;
    }
    if (fd < 0) {
      PyErr_Format(PyExc_ValueError, "Invalid file descriptor: %ld", fd);
      return -1;
    }
    return static_cast<int>(fd);
  }
  Ref number = Ref::steal(PyObject_CallMethod(object, "fileno", nullptr));
  if (number && PyLong_Check(number.get())) {
    return descriptor_of(number.get());
  }
  if (number || PyErr_ExceptionMatches(PyExc_AttributeError) ||
      PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "Invalid file object: %R", object);
  }
  return -1;
}

// ---- scheduling ----

PyObject* loop_call_soon(PyObject* self, PyObject* const* values, Py_ssize_t count,
                         PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    CallbackCall call;
    if (!parse_callback_call(loop.state(), "call_soon", nullptr, {values, count, keywords}, call) ||
        !loop.check_open() || !loop.check_thread() ||
        !loop.check_callback(call.callback, "call_soon")) {
      return nullptr;
    }
    return loop.call_soon(call.callback, call.args, call.arg_count, call.context);
  });
}

PyObject* loop_call_soon_threadsafe(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                    PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    CallbackCall call;
    if (!parse_callback_call(loop.state(), "call_soon_threadsafe", nullptr,
                             {values, count, keywords}, call)) {
      return nullptr;
    }
    return loop.call_soon_threadsafe(call.callback, call.args, call.arg_count, call.context);
  });
}

[[nodiscard]] PyObject* schedule_at(Loop& loop, const DueTime& when, const CallbackCall& call) {
  if (!loop.check_open() || !loop.check_thread() ||
      !loop.check_callback(call.callback, "call_at")) {
    return nullptr;
  }
  return loop.call_at(when, call.callback, call.args, call.arg_count, call.context);
}

[[nodiscard]] PyObject* schedule_at(Loop& loop, PyObject* when, const CallbackCall& call) {
  if (PyFloat_CheckExact(when)) {
    return schedule_at(loop, {PyFloat_AS_DOUBLE(when), nullptr}, call);
  }
  if (!loop.check_open()) {
    return nullptr;
  }
  const double seconds = PyFloat_AsDouble(when);
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) {
    return nullptr;
  }
  return schedule_at(loop, {seconds, when}, call);
}

// call_later() on a loop whose call_at() is somebody else's.
[[nodiscard]] PyObject* call_overridden_at(Loop& loop, PyObject* when, const CallbackCall& call) {
  Ref method = Ref::steal(PyObject_GetAttr(loop.self(), loop.state().str_call_at));
  Ref arguments = Ref::steal(PyTuple_New(call.arg_count + 2));
  Ref keywords = Ref::steal(PyDict_New());
  if (!method || !arguments || !keywords) {
    return nullptr;
  }
  PyTuple_SET_ITEM(arguments.get(), 0, py::new_ref(when));
  PyTuple_SET_ITEM(arguments.get(), 1, py::new_ref(call.callback));
  for (Py_ssize_t i = 0; i < call.arg_count; ++i) {
    PyTuple_SET_ITEM(arguments.get(), i + 2, py::new_ref(call.args[i]));
  }
  PyObject* context = call.context == nullptr ? Py_None : call.context;
  if (PyDict_SetItem(keywords.get(), loop.state().str_context, context) != 0) {
    return nullptr;
  }
  return PyObject_Call(method.get(), arguments.get(), keywords.get());
}

[[nodiscard]] double seconds_now() { return static_cast<double>(monotonic_now_ns()) / 1e9; }

[[nodiscard]] PyObject* current_time(Loop& loop) {
  if (loop.overrides().time) {
    return PyObject_CallMethodNoArgs(loop.self(), loop.state().str_time);
  }
  return PyFloat_FromDouble(seconds_now());
}

// time() + delay, where both are asyncio's own numbers. False without an error where they are not.
[[nodiscard]] bool seconds_after(Loop& loop, PyObject* delay, double& seconds) {
  const bool plain = PyFloat_CheckExact(delay) || PyLong_CheckExact(delay);
  if (!plain || loop.overrides().time) {
    return false;
  }
  const double given =
      PyFloat_CheckExact(delay) ? PyFloat_AS_DOUBLE(delay) : PyLong_AsDouble(delay);
  seconds = seconds_now() + given;
  return given != -1.0 || PyErr_Occurred() == nullptr;
}

[[nodiscard]] PyObject* call_later(Loop& loop, const CallbackCall& call) {
  double seconds = 0;
  if (seconds_after(loop, call.leading, seconds)) {
    if (!loop.overrides().call_at) [[likely]] {
      return schedule_at(loop, {seconds, nullptr}, call);
    }
  } else if (PyErr_Occurred() != nullptr) {
    return nullptr;
  }
  const Ref now = Ref::steal(current_time(loop));
  const Ref when = now ? Ref::steal(PyNumber_Add(now.get(), call.leading)) : Ref();
  if (!when) {
    return nullptr;
  }
  return loop.overrides().call_at ? call_overridden_at(loop, when.get(), call)
                                  : schedule_at(loop, when.get(), call);
}

PyObject* loop_call_later(PyObject* self, PyObject* const* values, Py_ssize_t count,
                          PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    CallbackCall call;
    if (!parse_callback_call(loop.state(), "call_later", loop.state().str_delay,
                             {values, count, keywords}, call)) {
      return nullptr;
    }
    if (call.leading == Py_None) {
      PyErr_SetString(PyExc_TypeError, "delay must not be None");
      return nullptr;
    }
    return call_later(loop, call);
  });
}

PyObject* loop_call_at(PyObject* self, PyObject* const* values, Py_ssize_t count,
                       PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    CallbackCall call;
    if (!parse_callback_call(loop.state(), "call_at", loop.state().str_when,
                             {values, count, keywords}, call)) {
      return nullptr;
    }
    if (call.leading == Py_None) {
      PyErr_SetString(PyExc_TypeError, "when cannot be None");
      return nullptr;
    }
    return schedule_at(loop, call.leading, call);
  });
}

PyObject* loop_time(PyObject*, PyObject*) { return PyFloat_FromDouble(seconds_now()); }

// A class by its name in one of asyncio's modules, as asyncio's own code finds it at each call.
[[nodiscard]] PyObject* current_class(PyObject* module_dict, PyObject* name) {
  PyObject* found = PyDict_GetItemWithError(module_dict, name);
  if (found == nullptr && PyErr_Occurred() == nullptr) {
    PyErr_SetObject(PyExc_AttributeError, name);
  }
  Py_XINCREF(found);
  return found;
}

PyObject* loop_create_future(PyObject* self, PyObject*) { return new_future(loop_of(self)); }

[[nodiscard]] bool same_names(PyObject* keywords, PyObject* others) noexcept {
  if (keywords == others || others == nullptr) {
    return keywords == others;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(keywords);
  if (count != PyTuple_GET_SIZE(others)) {
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (PyTuple_GET_ITEM(keywords, i) != PyTuple_GET_ITEM(others, i)) {
      return false;
    }
  }
  return true;
}

// The keyword names of a create_task() call with "loop" behind them. Callers pass the same ones
// each time (asyncio.create_task passes its own on, in a new tuple), so the last answer is kept.
[[nodiscard]] PyObject* names_with_loop(ModuleState& state, PyObject* keywords) {
  if (keywords == nullptr || PyTuple_GET_SIZE(keywords) == 0) {
    return state.loop_keyword;
  }
  if (same_names(keywords, state.task_keywords)) {
    return state.task_keywords_with_loop;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(keywords);
  Ref names = Ref::steal(PyTuple_New(count + 1));
  if (!names) {
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(names.get(), i, py::new_ref(PyTuple_GET_ITEM(keywords, i)));
  }
  PyTuple_SET_ITEM(names.get(), count, py::new_ref(state.str_loop));
  Ref old_keywords = Ref::steal(std::exchange(state.task_keywords, py::new_ref(keywords)));
  Ref old_names = Ref::steal(std::exchange(state.task_keywords_with_loop, names.release()));
  return state.task_keywords_with_loop;
}

// What this Python's create_task() takes. What it says to the rest is its own to say.
[[nodiscard]] bool known_task_keywords(ModuleState& state, const CallArgs& args) {
  for (Py_ssize_t i = 0; i < args.keyword_count(); ++i) {
    PyObject* name = args.keyword_name(i);
    const bool known = name == state.str_name || name == state.str_context ||
                       (PY_VERSION_HEX >= 0x030E0000 && name == state.str_eager_start);
    if (!known) {
      return false;
    }
  }
  return true;
}

PyObject* loop_create_task(PyObject* self, PyObject* const* values, Py_ssize_t count,
                           PyObject* keywords) {
  Loop& loop = loop_of(self);
  ModuleState& state = loop.state();
  const CallArgs args{values, count, keywords};
  constexpr Py_ssize_t kKeywordsMax = 6;
  const bool plain = count == 1 && args.keyword_count() <= kKeywordsMax && !loop.debug() &&
                     known_task_keywords(state, args) &&
                     (loop.task_factory == nullptr || loop.task_factory == Py_None);
  if (!plain || py::kFreeThreaded) {
    // A factory, debug mode's tracebacks, odd arguments: asyncio's own method knows them all.
    constexpr Py_ssize_t kArgumentsMax = 16;
    if (count + args.keyword_count() >= kArgumentsMax) {
      PyErr_SetString(PyExc_TypeError, "create_task() takes 1 positional argument");
      return nullptr;
    }
    std::array<PyObject*, kArgumentsMax + 1> stack{};
    stack[1] = self;
    for (Py_ssize_t i = 0; i < count + args.keyword_count(); ++i) {
      stack[static_cast<std::size_t>(i) + 2] = values[i];
    }
    return PyObject_Vectorcall(state.base_create_task, stack.data() + 1,
                               static_cast<std::size_t>(count + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET,
                               keywords);
  }
  if (!loop.check_open()) {
    return nullptr;
  }
  Ref names = Ref::borrow(names_with_loop(state, keywords));
  if (!names) {
    return nullptr;
  }
  std::array<PyObject*, kKeywordsMax + 3> stack{};
  const Py_ssize_t given = 1 + args.keyword_count();
  for (Py_ssize_t i = 0; i < given; ++i) {
    stack[static_cast<std::size_t>(i) + 1] = values[i];
  }
  stack[static_cast<std::size_t>(given) + 1] = self;
  Ref type = Ref::steal(current_class(state.tasks_dict, state.str_Task));
  return type ? PyObject_Vectorcall(type.get(), stack.data() + 1,
                                    1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names.get())
              : nullptr;
}

// ---- state ----

PyObject* loop_stop(PyObject* self, PyObject*) {
  Loop& loop = loop_of(self);
  if (py::kFreeThreaded && !loop.check_thread()) {
    return nullptr;
  }
  loop.engine().stop();
  return py::none();
}

PyObject* loop_is_running(PyObject* self, PyObject*) {
  return py::boolean(loop_of(self).running());
}
PyObject* loop_is_closed(PyObject* self, PyObject*) { return py::boolean(loop_of(self).closed()); }
PyObject* loop_get_debug(PyObject* self, PyObject*) { return py::boolean(loop_of(self).debug()); }

PyObject* loop_check_closed(PyObject* self, PyObject*) {
  return loop_of(self).check_open() ? py::none() : nullptr;
}

PyObject* loop_run(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (!loop.check_open()) {
      return nullptr;
    }
    return loop.run() ? py::none() : nullptr;
  });
}

PyObject* loop_run_once(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (!loop.check_open() || !loop.check_thread()) {
      return nullptr;
    }
    return loop.run_once() ? py::none() : nullptr;
  });
}

// ---- asyncio's private names: what is queued ----

// On free-threaded builds another thread than the loop's may not even look.
[[nodiscard]] bool may_look(Loop& loop) { return !py::kFreeThreaded || loop.check_thread(); }

PyObject* loop_ready_count(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return may_look(loop) ? PyLong_FromSize_t(loop.ready_count()) : nullptr;
  });
}
PyObject* loop_ready_handles(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return may_look(loop) ? loop.ready_handles() : nullptr;
  });
}
PyObject* loop_hold_writes(PyObject* self, PyObject* on) {
  loop_of(self).engine().holding().allow(on == Py_True);
  return py::none();
}

PyObject* loop_append_ready(PyObject* self, PyObject* handle) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return loop.check_open() && loop.check_thread() && loop.append_ready(handle) ? py::none()
                                                                                 : nullptr;
  });
}
PyObject* loop_clear_ready(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (loop.closed() || loop.forked()) {
      return py::none();
    }
    if (!loop.check_thread()) {
      return nullptr;
    }
    loop.engine().drop_ready_callbacks();
    return py::none();
  });
}
PyObject* loop_scheduled_count(PyObject* self, PyObject*) {
  Loop& loop = loop_of(self);
  return may_look(loop) ? PyLong_FromSize_t(loop.engine().timers().size()) : nullptr;
}
PyObject* loop_scheduled_handles(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return may_look(loop) ? loop.scheduled_handles() : nullptr;
  });
}
PyObject* loop_clear_scheduled(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (loop.closed() || loop.forked()) {
      return py::none();
    }
    if (!loop.check_thread()) {
      return nullptr;
    }
    loop.engine().drop_timers();
    return py::none();
  });
}
PyObject* loop_open_transports(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return may_look(loop) ? loop.open_transports() : nullptr;
  });
}

PyObject* loop_expect_transports_of_asyncio(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    loop_of(self).expect_transports_of_asyncio();
    return py::none();
  });
}

PyObject* loop_close(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (loop.running() && !loop.forked()) {
      PyErr_SetString(PyExc_RuntimeError, "Cannot close a running event loop");
      return nullptr;
    }
    loop.close();
    return py::none();
  });
}

PyObject* loop_write_to_self(PyObject* self, PyObject*) {
  loop_of(self).engine().inbox().wake();
  return py::none();
}

PyObject* loop_forked(PyObject* self, PyObject*) { return py::boolean(loop_of(self).forked()); }

// ---- readers and writers ----

// add_reader() and _add_reader(): the first refuses descriptors of open transports.
[[nodiscard]] PyObject* add_watcher(PyObject* self, const CallArgs& args, const char* function,
                                    Wanted what, bool checks_transport) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    CallbackCall call;
    if (!parse_callback_call(loop.state(), function, loop.state().str_fd, args, call) ||
        call.leading == nullptr || !loop.check_open() || !loop.check_thread()) {
      return nullptr;
    }
    if (checks_transport && call.context != nullptr) {
      // asyncio's public methods have no such parameter.
      PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument 'context'", function);
      return nullptr;
    }
    const int fd = descriptor_of(call.leading);
    if (fd < 0 || (checks_transport && !ensure_no_transport(loop, fd, call.leading))) {
      return nullptr;
    }
    Ref handle = Ref::steal(
        loop.add_watcher(fd, what, call.callback, call.args, call.arg_count, call.context));
    if (!handle) {
      return nullptr;
    }
    if (!PyLong_Check(call.leading)) {
      loop.remember_descriptor(call.leading, fd);
    }
    return checks_transport ? py::none() : handle.release();
  });
}

[[nodiscard]] PyObject* remove_watcher(PyObject* self, PyObject* object, Wanted what,
                                       bool checks_transport) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (!loop.check_thread()) {
      return nullptr;
    }
    int fd = descriptor_of(object);
    if (fd < 0) {
      // Too large a number is watched by nobody; a file that is closed by now may have been open
      // when it was added; all else is refused.
      if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        Py_RETURN_FALSE;
      }
      py::PendingError error = py::PendingError::take();
      fd = PyLong_Check(object) ? -1 : loop.descriptor_when_added(object);
      if (fd < 0) {
        error.restore();
        return nullptr;
      }
    } else if (checks_transport && !ensure_no_transport(loop, fd, object)) {
      return nullptr;
    }
    if (loop.closed()) {
      Py_RETURN_FALSE;
    }
    const int removed = loop.remove_watcher(fd, what);
    return removed < 0 ? nullptr : py::boolean(removed == 1);
  });
}

PyObject* loop_add_reader(PyObject* self, PyObject* const* values, Py_ssize_t count,
                          PyObject* keywords) {
  return add_watcher(self, {values, count, keywords}, "add_reader", kWantReadable, true);
}
PyObject* loop_add_writer(PyObject* self, PyObject* const* values, Py_ssize_t count,
                          PyObject* keywords) {
  return add_watcher(self, {values, count, keywords}, "add_writer", kWantWritable, true);
}
PyObject* loop_add_reader_unchecked(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                    PyObject* keywords) {
  return add_watcher(self, {values, count, keywords}, "_add_reader", kWantReadable, false);
}
PyObject* loop_add_writer_unchecked(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                    PyObject* keywords) {
  return add_watcher(self, {values, count, keywords}, "_add_writer", kWantWritable, false);
}
PyObject* loop_remove_reader(PyObject* self, PyObject* const* values, Py_ssize_t count,
                             PyObject* keywords) {
  PyObject* fd =
      py::only_argument("remove_reader", loop_of(self).state().str_fd, {values, count, keywords});
  return fd == nullptr ? nullptr : remove_watcher(self, fd, kWantReadable, true);
}
PyObject* loop_remove_writer(PyObject* self, PyObject* const* values, Py_ssize_t count,
                             PyObject* keywords) {
  PyObject* fd =
      py::only_argument("remove_writer", loop_of(self).state().str_fd, {values, count, keywords});
  return fd == nullptr ? nullptr : remove_watcher(self, fd, kWantWritable, true);
}
PyObject* loop_remove_reader_unchecked(PyObject* self, PyObject* fd) {
  return remove_watcher(self, fd, kWantReadable, false);
}
PyObject* loop_remove_writer_unchecked(PyObject* self, PyObject* fd) {
  return remove_watcher(self, fd, kWantWritable, false);
}

PyObject* loop_watch_process(PyObject* self, PyObject* args) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    int process = 0;
    PyObject* callback = nullptr;
    if (PyArg_ParseTuple(args, "iO:_watch_process", &process, &callback) == 0 ||
        !loop.check_open() || !loop.check_thread()) {
      return nullptr;
    }
    return loop.watch_process(process, callback) ? py::none() : nullptr;
  });
}

PyObject* loop_unwatch_process(PyObject* self, PyObject* process) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    const long number = PyLong_AsLong(process);
    if ((number == -1 && PyErr_Occurred() != nullptr) || !loop.check_thread()) {
      return nullptr;
    }
    loop.unwatch_process(static_cast<pid_t>(number));
    return py::none();
  });
}

// Which of reading (1) and writing (2) a descriptor is watched for.
PyObject* loop_watched(PyObject* self, PyObject* object) {
  return py::guard([&]() -> PyObject* {
    const int fd = descriptor_of(object);
    if (fd < 0) {
      return nullptr;
    }
    const ReadinessWatchers& watchers = loop_of(self).engine().watchers();
    return PyLong_FromLong((watchers.has(fd, kWantReadable) ? 1 : 0) |
                           (watchers.has(fd, kWantWritable) ? 2 : 0));
  });
}

PyObject* loop_watched_descriptors(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    std::vector<int> watched;
    loop_of(self).engine().watchers().for_each_descriptor([&](int fd) { watched.push_back(fd); });
    Ref list = Ref::steal(PyList_New(0));
    for (const int fd : watched) {
      Ref number = list ? Ref::steal(PyLong_FromLong(fd)) : Ref();
      if (!number || PyList_Append(list.get(), number.get()) != 0) {
        return nullptr;
      }
    }
    return list.release();
  });
}

PyObject* loop_ensure_fd_no_transport(PyObject* self, PyObject* object) {
  return py::guard([&]() -> PyObject* {
    const int fd = descriptor_of(object);
    return fd >= 0 && ensure_no_transport(loop_of(self), fd, object) ? py::none() : nullptr;
  });
}

PyObject* loop_literal_destination(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  if (count != 2) {
    PyErr_Format(PyExc_TypeError, "_literal_destination() takes 2 arguments (%zd given)", count);
    return nullptr;
  }
  return literal_destination(loop_of(self), values[0], values[1]);
}

// The arguments of a _make_*_transport(): the first two must be given, and None stands for the
// absence of the others. False with the Python error set.
[[nodiscard]] bool read_transport_arguments(Loop& loop, const char* function, const CallArgs& args,
                                            std::span<const py::Parameter> parameters) {
  if (!py::parse(function, args, parameters) || !loop.check_open() || !loop.check_thread()) {
    return false;
  }
  constexpr std::size_t kRequired = 2;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    PyObject*& value = *parameters[i].target;
    if (i < kRequired && value == nullptr) {
      (void)py::refuse_missing(function, PyUnicode_AsUTF8(parameters[i].name));
      return false;
    }
    if (i >= kRequired && value == Py_None) {
      value = nullptr;
    }
  }
  return true;
}

// The descriptor of a socket that no transport has yet. Negative with the Python error set.
[[nodiscard]] int free_descriptor_of(Loop& loop, PyObject* sock) {
  const int fd = descriptor_of(sock);
  return fd >= 0 && ensure_no_transport(loop, fd, sock) ? fd : -1;
}

// Whether `sock` is of a child class of socket.socket that replaces what asyncio's transport would
// call, or such an instance does. A patch of socket.socket itself is no such wish: tools that watch
// a program for blocking calls make them.
[[nodiscard]] bool has_methods_of_its_own(ModuleState& state, PyObject* sock) {
  return Py_TYPE(sock) != state.socket_type && PyType_IsSubtype(Py_TYPE(sock), state.socket_type) &&
         !is_plain_socket(state, sock);
}

// asyncio's own transport, which calls the socket's methods.
[[nodiscard]] PyObject* transport_of_asyncio(PyObject* loop, ModuleState& state,
                                             const TransportSpec& spec) {
  const auto or_none = [](PyObject* value) { return value == nullptr ? Py_None : value; };
  return PyObject_CallMethod(state.support, "_make_asyncios_transport", "OOOOOOO", loop, spec.sock,
                             spec.protocol, or_none(spec.waiter), or_none(spec.extra),
                             or_none(spec.server), or_none(spec.context));
}

PyObject* loop_make_socket_transport(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                     PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    ModuleState& state = loop.state();
    TransportSpec spec;
    const py::Parameter parameters[] = {
        {state.str_sock, &spec.sock, false},     {state.str_protocol, &spec.protocol, false},
        {state.str_waiter, &spec.waiter, false}, {state.str_extra, &spec.extra, true},
        {state.str_server, &spec.server, true},  {state.str_context, &spec.context, true},
    };
    if (!read_transport_arguments(loop, "_make_socket_transport", {values, count, keywords},
                                  parameters)) {
      return nullptr;
    }
    const int fd = free_descriptor_of(loop, spec.sock);
    if (fd < 0) {
      return nullptr;
    }
    return has_methods_of_its_own(state, spec.sock) ? transport_of_asyncio(self, state, spec)
                                                    : new_stream_transport(loop, fd, spec);
  });
}

// _make_read_pipe_transport() and _make_write_pipe_transport().
[[nodiscard]] PyObject* make_pipe_transport(PyObject* self, const CallArgs& args,
                                            const char* function,
                                            PyObject* (*make)(Loop&, const PipeSpec&)) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    ModuleState& state = loop.state();
    PipeSpec spec;
    const py::Parameter parameters[] = {{state.str_pipe, &spec.pipe, false},
                                        {state.str_protocol, &spec.protocol, false},
                                        {state.str_waiter, &spec.waiter, false},
                                        {state.str_extra, &spec.extra, false}};
    return read_transport_arguments(loop, function, args, parameters) ? make(loop, spec) : nullptr;
  });
}

PyObject* loop_make_read_pipe_transport(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                        PyObject* keywords) {
  return make_pipe_transport(self, {values, count, keywords}, "_make_read_pipe_transport",
                             new_read_pipe_transport);
}
PyObject* loop_make_write_pipe_transport(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                         PyObject* keywords) {
  return make_pipe_transport(self, {values, count, keywords}, "_make_write_pipe_transport",
                             new_write_pipe_transport);
}

// ---- what the loop counts ----

[[nodiscard]] bool put_number(PyObject* dict, const char* name, std::uint64_t value) {
  const Ref number = Ref::steal(PyLong_FromUnsignedLongLong(value));
  return number && PyDict_SetItemString(dict, name, number.get()) == 0;
}

PyObject* loop_counters(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    Engine& engine = loop.engine();
    Metrics& metrics = engine.metrics();
    metrics.measure_from(monotonic_now_ns());
    Ref dict = Ref::steal(PyDict_New());
    Ref periods = Ref::steal(PyTuple_New(Metrics::kBusyBuckets));
    if (!dict || !periods) {
      return nullptr;
    }
    const std::pair<const char*, std::uint64_t> numbers[] = {
        {"turns", metrics.turns.get()},
        {"waits", metrics.waits.get()},
        {"wake_ups", metrics.wake_ups.get()},
        {"events", metrics.events.get()},
        {"callbacks", engine.callback_serial() - 1},
        {"timers_fired", metrics.timers.get()},
        {"ready_peak", metrics.ready_peak.get()},
        {"accepted", metrics.accepted.get()},
        {"bytes_received", metrics.bytes_received.get()},
        {"bytes_sent", metrics.bytes_sent.get()},
        {"waited_ns", metrics.waited_ns.get()},
        {"busy_ns", metrics.busy_ns.get()},
    };
    for (const auto& [name, value] : numbers) {
      if (!put_number(dict.get(), name, value)) {
        return nullptr;
      }
    }
    for (std::size_t i = 0; i < Metrics::kBusyBuckets; ++i) {
      PyObject* number = PyLong_FromUnsignedLongLong(metrics.busy_periods[i].get());
      if (number == nullptr) {
        return nullptr;
      }
      PyTuple_SET_ITEM(periods.get(), static_cast<Py_ssize_t>(i), number);
    }
    return PyDict_SetItemString(dict.get(), "busy_periods", periods.get()) == 0 ? dict.release()
                                                                                : nullptr;
  });
}

PyObject* loop_timer_count(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    const TimerHeap& timers = loop.engine().timers();
    return may_look(loop) ? PyLong_FromSize_t(timers.size() - timers.cancelled()) : nullptr;
  });
}

// (whether it is busy, which callback it is at): asked from other threads.
PyObject* loop_progress(PyObject* self, PyObject*) {
  Engine& engine = loop_of(self).engine();
  return Py_BuildValue("NK", PyBool_FromLong(engine.busy() ? 1 : 0),
                       static_cast<unsigned long long>(engine.callback_serial()));
}

PyObject* loop_trace_start(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    if (count != 2) {
      return PyErr_Format(PyExc_TypeError, "_trace_start() takes 2 arguments (%zd given)", count);
    }
    const Py_ssize_t limit = PyLong_AsSsize_t(values[1]);
    if (limit < 0) {
      if (PyErr_Occurred() == nullptr) {
        PyErr_SetString(PyExc_ValueError, "a trace cannot have less than no events");
      }
      return nullptr;
    }
    if (!loop.check_open() || !may_look(loop)) {
      return nullptr;
    }
    if (loop.is_traced()) {
      PyErr_SetString(PyExc_RuntimeError, "the loop is traced already");
      return nullptr;
    }
    loop.start_trace(values[0], static_cast<std::size_t>(limit));
    return py::none();
  });
}
PyObject* loop_trace_stop(PyObject* self, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    return may_look(loop) ? loop.stop_trace() : nullptr;
  });
}

// ---- sockets of the user's ----

template <SockCall kCall>
PyObject* loop_sock_call(PyObject* self, PyObject* const* values, Py_ssize_t count,
                         PyObject* keywords) {
  return py::guard([&] { return start_sock_call(self, kCall, {values, count, keywords}); });
}

PyObject* loop_make_native_datagram_transport(PyObject* self, PyObject* const* values,
                                              Py_ssize_t count, PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    Loop& loop = loop_of(self);
    ModuleState& state = loop.state();
    DatagramSpec spec;
    const py::Parameter parameters[] = {
        {state.str_sock, &spec.sock, false},       {state.str_protocol, &spec.protocol, false},
        {state.str_address, &spec.address, false}, {state.str_waiter, &spec.waiter, false},
        {state.str_extra, &spec.extra, false},
    };
    if (!read_transport_arguments(loop, "_make_native_datagram_transport",
                                  {values, count, keywords}, parameters)) {
      return nullptr;
    }
    const int fd = free_descriptor_of(loop, spec.sock);
    return fd < 0 ? nullptr : new_datagram_transport(loop, fd, spec);
  });
}

// ---- attributes ----

PyObject* get_debug_attribute(PyObject* self, void*) { return py::boolean(loop_of(self).debug()); }
int set_debug_attribute(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) {
    return -1;
  }
  loop_of(self).set_debug(truth != 0);
  return 0;
}

PyObject* get_closed(PyObject* self, void*) { return py::boolean(loop_of(self).closed()); }
// asyncio's constructor sets it to False; that it is closed only close() can say.
int set_closed(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) {
    return -1;
  }
  if (truth == 1 && !loop_of(self).closed()) {
    PyErr_SetString(PyExc_AttributeError, "loop._closed cannot be set: call loop.close()");
    return -1;
  }
  return 0;
}

PyObject* get_timer_cancelled_count(PyObject* self, void*) {
  Loop& loop = loop_of(self);
  return may_look(loop) ? PyLong_FromSize_t(loop.engine().timers().cancelled()) : nullptr;
}
// The heap counts itself: what asyncio's code adds or resets has happened already.
int ignore_value(PyObject*, PyObject*, void*) { return 0; }

PyObject* get_stopping(PyObject* self, void*) {
  return py::boolean(loop_of(self).engine().stopping());
}
int set_stopping(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth < 0) {
    return -1;
  }
  loop_of(self).engine().set_stopping(truth != 0);
  return 0;
}

PyObject* get_thread_id(PyObject* self, void*) { return loop_of(self).thread_id_object(); }
int set_thread_id(PyObject* self, PyObject* value, void*) {
  return loop_of(self).set_thread_id(value) ? 0 : -1;
}

PyObject* get_task_factory(PyObject* self, void*) {
  PyObject* factory = loop_of(self).task_factory;
  return py::new_ref(factory == nullptr ? Py_None : factory);
}
int set_task_factory(PyObject* self, PyObject* value, void*) {
  Ref old = Ref::steal(
      std::exchange(loop_of(self).task_factory, value == nullptr ? nullptr : py::new_ref(value)));
  return 0;
}

PyObject* get_backend(PyObject* self, void*) {
  return PyUnicode_FromString(loop_of(self).engine().backend().name());
}

// ---- life ----

// The edge says in the first argument which backend it chose; whatever else there is belongs to a
// child's __init__().
[[nodiscard]] BackendChoice backend_choice(PyObject* args) {
  PyObject* first = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0) : nullptr;
  if (first == nullptr || !PyUnicode_Check(first)) {
    return BackendChoice::automatic;
  }
  for (const BackendChoice choice : backends_built()) {
    if (PyUnicode_CompareWithASCIIString(first, name_of(choice)) == 0) {
      return choice;
    }
  }
  return BackendChoice::automatic;
}

PyObject* loop_new(PyTypeObject* type, PyObject* args, PyObject*) {
  return py::guard([&]() -> PyObject* {
    Ref self = Ref::steal(type->tp_alloc(type, 0));
    if (!self) {
      return nullptr;
    }
    auto* object = reinterpret_cast<LoopObject*>(self.get());
    ModuleState* state = module_state_of(type);
    try {
      new (object->storage) Loop(self.get(), *state, backend_choice(args));
    } catch (...) {
      // Not by its last reference: a __del__ would find a loop that never was.
      PyObject* half_made = self.release();
      PyObject_GC_UnTrack(half_made);
      type->tp_free(half_made);
      Py_DECREF(type);
      throw;
    }
    object->constructed = true;
    loop_of(self.get()).find_overrides();
    return self.release();
  });
}

int loop_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  auto* object = reinterpret_cast<LoopObject*>(self);
  return object->constructed ? loop_of(self).traverse(visit, arg) : 0;
}

int loop_clear(PyObject* self) {
  if (reinterpret_cast<LoopObject*>(self)->constructed) {
    loop_of(self).clear();
  }
  return 0;
}

void loop_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* object = reinterpret_cast<LoopObject*>(self);
  if (object->constructed) {
    loop_of(self).~Loop();
    object->constructed = false;
  }
  type->tp_free(self);
  Py_DECREF(type);
}

int loop_setattro(PyObject* self, PyObject* name, PyObject* value) {
  if (PyObject_GenericSetAttr(self, name, value) != 0) {
    return -1;
  }
  loop_of(self).note_attribute_set(name);
  return 0;
}

using py::as_cfunction;
using py::kFast;

PyMethodDef loop_methods[] = {
    {"call_soon", as_cfunction(loop_call_soon), kFast,
     "call_soon($self, /, callback, *args, context=None)\n--\n\n"
     "Queue callback(*args) for the next turn (asyncio's loop.call_soon).\n\n"
     "context: contextvars.Context to run in; a copy of the current one by default.\n"
     "Returns an asyncio.Handle. RuntimeError on a closed loop."},
    {"call_soon_threadsafe", as_cfunction(loop_call_soon_threadsafe), kFast,
     "call_soon_threadsafe($self, /, callback, *args, context=None)\n--\n\n"
     "As call_soon(), from any thread; wakes the loop (asyncio's loop.call_soon_threadsafe)."},
    {"call_later", as_cfunction(loop_call_later), kFast,
     "call_later($self, /, delay, callback, *args, context=None)\n--\n\n"
     "Run callback(*args) `delay` seconds from now, never earlier (asyncio's loop.call_later).\n\n"
     "Returns an asyncio.TimerHandle."},
    {"call_at", as_cfunction(loop_call_at), kFast,
     "call_at($self, /, when, callback, *args, context=None)\n--\n\n"
     "Run callback(*args) when loop.time() reaches `when`, in seconds (asyncio's loop.call_at)."},
    {"time", loop_time, METH_NOARGS,
     "time($self, /)\n--\n\nThe loop's clock in seconds: time.monotonic() (asyncio's loop.time)."},
    {"create_future", loop_create_future, METH_NOARGS,
     "create_future($self, /)\n--\n\nA new asyncio.Future of this loop (asyncio's "
     "loop.create_future)."},
    {"create_task", as_cfunction(loop_create_task), kFast,
     "create_task($self, /, coro, **kwargs)\n--\n\n"
     "Wrap a coroutine in an asyncio.Task (asyncio's loop.create_task). Keywords (name, context,\n"
     "eager_start, ...) are the running Python's."},
    {"stop", loop_stop, METH_NOARGS,
     "stop($self, /)\n--\n\nEnd run_forever() after this turn (asyncio's loop.stop)."},
    {"is_running", loop_is_running, METH_NOARGS,
     "is_running($self, /)\n--\n\nWhether the loop runs (asyncio's loop.is_running)."},
    {"is_closed", loop_is_closed, METH_NOARGS,
     "is_closed($self, /)\n--\n\nWhether the loop was closed (asyncio's loop.is_closed)."},
    {"get_debug", loop_get_debug, METH_NOARGS,
     "get_debug($self, /)\n--\n\nWhether debug mode is on (asyncio's loop.get_debug)."},
    {"add_reader", as_cfunction(loop_add_reader), kFast,
     "add_reader($self, /, fd, callback, *args)\n--\n\n"
     "Call callback(*args) while fd is readable (asyncio's loop.add_reader).\n\n"
     "fd: a descriptor number or an object with fileno(). OSError when the kernel refuses it."},
    {"add_writer", as_cfunction(loop_add_writer), kFast,
     "add_writer($self, /, fd, callback, *args)\n--\n\n"
     "Call callback(*args) while fd is writable (asyncio's loop.add_writer)."},
    {"remove_reader", as_cfunction(loop_remove_reader), kFast,
     "remove_reader($self, /, fd)\n--\n\n"
     "Stop watching fd for reading; whether it was watched (asyncio's loop.remove_reader)."},
    {"remove_writer", as_cfunction(loop_remove_writer), kFast,
     "remove_writer($self, /, fd)\n--\n\n"
     "Stop watching fd for writing; whether it was watched (asyncio's loop.remove_writer)."},
    {"_add_reader", as_cfunction(loop_add_reader_unchecked), kFast,
     "_add_reader($self, /, fd, callback, *args)\n--\n\nadd_reader() for any descriptor; the "
     "handle."},
    {"_add_writer", as_cfunction(loop_add_writer_unchecked), kFast,
     "_add_writer($self, /, fd, callback, *args)\n--\n\nadd_writer() for any descriptor; the "
     "handle."},
    {"_remove_reader", loop_remove_reader_unchecked, METH_O,
     "_remove_reader($self, fd, /)\n--\n\nremove_reader() for any descriptor."},
    {"_remove_writer", loop_remove_writer_unchecked, METH_O,
     "_remove_writer($self, fd, /)\n--\n\nremove_writer() for any descriptor."},
    {"_watch_process", loop_watch_process, METH_VARARGS,
     "_watch_process($self, process, callback, /)\n--\n\n"
     "Call callback() once when a child has ended, given its number. OSError where the backend\n"
     "watches no processes, and for one that it does not know."},
    {"_unwatch_process", loop_unwatch_process, METH_O,
     "_unwatch_process($self, process, /)\n--\n\nStop watching a child, if it is watched."},
    {"_watched", loop_watched, METH_O,
     "_watched($self, fd, /)\n--\n\nWhat fd is watched for: reading (1), writing (2)."},
    {"_watched_descriptors", loop_watched_descriptors, METH_NOARGS,
     "_watched_descriptors($self, /)\n--\n\nThe descriptors that callbacks are watching."},
    {"_ensure_fd_no_transport", loop_ensure_fd_no_transport, METH_O,
     "_ensure_fd_no_transport($self, fd, /)\n--\n\nRaise RuntimeError if a transport uses fd."},
    {"_literal_destination", as_cfunction(loop_literal_destination), METH_FASTCALL,
     "_literal_destination($self, host, port, /)\n--\n\n"
     "What create_connection(..., host, port) connects to where it has nothing to resolve."},
    {"_make_socket_transport", as_cfunction(loop_make_socket_transport), kFast,
     "_make_socket_transport($self, /, sock, protocol, waiter=None, *, extra=None, server=None,\n"
     "                       context=None)\n--\n\nA StreamTransport for a connected socket."},
    {"_make_read_pipe_transport", as_cfunction(loop_make_read_pipe_transport), kFast,
     "_make_read_pipe_transport($self, /, pipe, protocol, waiter=None, extra=None)\n--\n\n"
     "A ReadPipeTransport for a pipe, a socket or a character device."},
    {"_make_write_pipe_transport", as_cfunction(loop_make_write_pipe_transport), kFast,
     "_make_write_pipe_transport($self, /, pipe, protocol, waiter=None, extra=None)\n--\n\n"
     "A WritePipeTransport for a pipe, a socket or a character device."},
    {"sock_recv", as_cfunction(loop_sock_call<SockCall::recv>), kFast,
     "sock_recv($self, /, sock, n)\n--\n\n"
     "Await up to n bytes from a non-blocking socket (asyncio's loop.sock_recv)."},
    {"sock_recv_into", as_cfunction(loop_sock_call<SockCall::recv_into>), kFast,
     "sock_recv_into($self, /, sock, buf)\n--\n\n"
     "Await bytes from a socket into a writable buffer; their number (asyncio's\n"
     "loop.sock_recv_into)."},
    {"sock_recvfrom", as_cfunction(loop_sock_call<SockCall::recvfrom>), kFast,
     "sock_recvfrom($self, /, sock, bufsize)\n--\n\n"
     "Await a datagram: (bytes, address) (asyncio's loop.sock_recvfrom)."},
    {"sock_recvfrom_into", as_cfunction(loop_sock_call<SockCall::recvfrom_into>), kFast,
     "sock_recvfrom_into($self, /, sock, buf, nbytes=0)\n--\n\n"
     "Await a datagram into a writable buffer: (count, address) (asyncio's\n"
     "loop.sock_recvfrom_into)."},
    {"sock_sendall", as_cfunction(loop_sock_call<SockCall::sendall>), kFast,
     "sock_sendall($self, /, sock, data)\n--\n\n"
     "Send all of data on a connected socket (asyncio's loop.sock_sendall)."},
    {"sock_sendto", as_cfunction(loop_sock_call<SockCall::sendto>), kFast,
     "sock_sendto($self, /, sock, data, address)\n--\n\n"
     "Send a datagram; the number of bytes sent (asyncio's loop.sock_sendto)."},
    {"sock_connect", as_cfunction(loop_sock_call<SockCall::connect>), kFast,
     "sock_connect($self, /, sock, address)\n--\n\n"
     "Connect a socket; names are looked up (asyncio's loop.sock_connect)."},
    {"sock_accept", as_cfunction(loop_sock_call<SockCall::accept>), kFast,
     "sock_accept($self, /, sock)\n--\n\n"
     "Await a connection on a listening socket: (socket, address) (asyncio's loop.sock_accept)."},
    {"_make_native_datagram_transport", as_cfunction(loop_make_native_datagram_transport), kFast,
     "_make_native_datagram_transport($self, /, sock, protocol, address=None, waiter=None,\n"
     "                                extra=None)\n--\n\nA DatagramTransport for a socket."},
    {"_check_closed", loop_check_closed, METH_NOARGS,
     "_check_closed($self, /)\n--\n\nRaise RuntimeError if the loop is closed."},
    {"_write_to_self", loop_write_to_self, METH_NOARGS,
     "_write_to_self($self, /)\n--\n\nWake the loop, from any thread."},
    {"_run", loop_run, METH_NOARGS,
     "_run($self, /)\n--\n\nRun turns until stop(); run_forever() without its preparations."},
    {"_run_once", loop_run_once, METH_NOARGS,
     "_run_once($self, /)\n--\n\nOne turn, for programs that drive the loop themselves."},
    {"_ready_count", loop_ready_count, METH_NOARGS,
     "_ready_count($self, /)\n--\n\nHow many callbacks and events are ready to run."},
    {"_ready_handles", loop_ready_handles, METH_NOARGS,
     "_ready_handles($self, /)\n--\n\nThe handles that are ready, in their order."},
    {"_hold_writes", loop_hold_writes, METH_O,
     "_hold_writes($self, on, /)\n--\n\nWhether writes may be held beyond their callback."},
    {"_append_ready", loop_append_ready, METH_O,
     "_append_ready($self, handle, /)\n--\n\nRun a handle behind what is ready."},
    {"_clear_ready", loop_clear_ready, METH_NOARGS,
     "_clear_ready($self, /)\n--\n\nDrop the handles that are ready."},
    {"_scheduled_count", loop_scheduled_count, METH_NOARGS,
     "_scheduled_count($self, /)\n--\n\nHow many timers wait, cancelled ones included."},
    {"_scheduled_handles", loop_scheduled_handles, METH_NOARGS,
     "_scheduled_handles($self, /)\n--\n\nThe timers that wait, the earliest first."},
    {"_clear_scheduled", loop_clear_scheduled, METH_NOARGS,
     "_clear_scheduled($self, /)\n--\n\nDrop every timer."},
    {"_counters", loop_counters, METH_NOARGS,
     "_counters($self, /)\n--\n\nWhat the loop has counted since it was made; any thread may ask."},
    {"_timer_count", loop_timer_count, METH_NOARGS,
     "_timer_count($self, /)\n--\n\nHow many timers wait."},
    {"_progress", loop_progress, METH_NOARGS,
     "_progress($self, /)\n--\n\n"
     "Whether the loop is busy, and the number of its callback; any thread may ask."},
    {"_trace_start", as_cfunction(loop_trace_start), METH_FASTCALL,
     "_trace_start($self, name_of, limit, /)\n--\n\nRecord up to limit events from now on."},
    {"_trace_stop", loop_trace_stop, METH_NOARGS,
     "_trace_stop($self, /)\n--\n\nWhat was recorded, or None."},
    {"_open_transports", loop_open_transports, METH_NOARGS,
     "_open_transports($self, /)\n--\n\nThe native transports that the loop holds."},
    {"_expect_transports_of_asyncio", loop_expect_transports_of_asyncio, METH_NOARGS,
     "_expect_transports_of_asyncio($self, /)\n--\n\n"
     "Say that transports of asyncio's are made, whose descriptors _transports knows."},
    {"_close", loop_close, METH_NOARGS,
     "_close($self, /)\n--\n\nDrop what is queued and close the engine's descriptors."},
    {"_forked", loop_forked, METH_NOARGS,
     "_forked($self, /)\n--\n\nWhether this process got the loop through fork()."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef loop_getset[] = {
    {"_backend", get_backend, nullptr, nullptr, nullptr},
    {"_debug", get_debug_attribute, set_debug_attribute, nullptr, nullptr},
    {"_closed", get_closed, set_closed, nullptr, nullptr},
    {"_timer_cancelled_count", get_timer_cancelled_count, ignore_value, nullptr, nullptr},
    {"_stopping", get_stopping, set_stopping, nullptr, nullptr},
    {"_thread_id", get_thread_id, set_thread_id, nullptr, nullptr},
    {"_task_factory", get_task_factory, set_task_factory, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot loop_slots[] = {
    {Py_tp_doc, const_cast<char*>("The native half of cpploop.Loop.")},
    {Py_tp_new, reinterpret_cast<void*>(loop_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(loop_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(loop_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(loop_clear)},
    {Py_tp_setattro, reinterpret_cast<void*>(loop_setattro)},
    {Py_tp_methods, loop_methods},
    {Py_tp_getset, loop_getset},
    {0, nullptr},
};

PyType_Spec loop_spec = {
    "cpploop._native.Loop",
    sizeof(LoopObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    loop_slots,
};

// What asyncio's sock_*() call on their loop to wait for a descriptor.
[[nodiscard]] std::array<PyObject*, 8> waiting_methods(const ModuleState& state) {
  return {state.str_create_future,  state.str__ensure_fd_no_transport, state.str__add_reader,
          state.str__add_writer,    state.str_remove_reader,           state.str_remove_writer,
          state.str__remove_reader, state.str__remove_writer};
}

// Whether `self.name` is still this file's method, bound to this very loop.
[[nodiscard]] bool is_overridden(PyObject* self, PyObject* name) {
  Ref method = Ref::steal(PyObject_GetAttr(self, name));
  if (!method) {
    PyErr_Clear();
    return true;
  }
  if (!PyCFunction_Check(method.get()) || PyCFunction_GET_SELF(method.get()) != self) {
    return true;
  }
  const PyMethodDef* definition = reinterpret_cast<PyCFunctionObject*>(method.get())->m_ml;
  return definition < std::begin(loop_methods) || definition >= std::end(loop_methods);
}

}  // namespace

PyObject* new_future(Loop& loop) {
  ModuleState& state = loop.state();
  Ref type = Ref::steal(current_class(state.futures_dict, state.str_Future));
  PyObject* arguments[] = {nullptr, loop.self()};
  return type ? PyObject_Vectorcall(type.get(), arguments + 1, 0 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                    state.loop_keyword)
              : nullptr;
}

void Loop::find_overrides() {
  known_type_version_ = Py_TYPE(self_)->tp_version_tag;
  overrides_.time = is_overridden(self_, state_.str_time);
  overrides_.call_soon = is_overridden(self_, state_.str_call_soon);
  overrides_.call_at = is_overridden(self_, state_.str_call_at);
  overrides_.watchers = false;
  for (PyObject* name : waiting_methods(state_)) {
    overrides_.watchers = overrides_.watchers || is_overridden(self_, name);
  }
  overrides_.connecting = replaces_resolving(self_, state_);
  engine_.set_clock(overrides_.time ? static_cast<Clock*>(this) : nullptr);
  // The look-ups above gave the type a version if it had none.
  known_type_version_ = Py_TYPE(self_)->tp_version_tag;
}

void Loop::note_attribute_set(PyObject* name) {
  const auto is_name = [name](PyObject* watched) {
    return name == watched || PyUnicode_Compare(name, watched) == 0;
  };
  const auto waiting = waiting_methods(state_);
  if (is_name(state_.str_time) || is_name(state_.str_call_soon) || is_name(state_.str_call_at) ||
      is_name(state_.str__ensure_resolved) || is_name(state_.str__connect_sock) ||
      std::any_of(waiting.begin(), waiting.end(), is_name)) {
    find_overrides();
  }
}

bool add_loop_type(PyObject* module, ModuleState& state) {
  Ref base_events = Ref::steal(PyImport_ImportModule("asyncio.base_events"));
  Ref base_loop =
      base_events ? Ref::steal(PyObject_GetAttrString(base_events.get(), "BaseEventLoop")) : Ref();
  if (!base_loop) {
    return false;
  }
  state.base_create_task = PyObject_GetAttrString(base_loop.get(), "create_task");
  state.loop_keyword = PyTuple_Pack(1, state.str_loop);
  state.loop_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &loop_spec, nullptr));
  return state.base_create_task != nullptr && state.loop_keyword != nullptr &&
         state.loop_type != nullptr && PyModule_AddType(module, state.loop_type) == 0;
}

}  // namespace cpploop

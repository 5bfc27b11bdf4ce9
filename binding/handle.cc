#include "binding/handle.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>

#include "binding/loop.h"
#include "binding/py/guard.h"

namespace cpploop {
namespace {

using py::Ref;

// ---- life ----

[[nodiscard]] bool keeps_free_list() noexcept {
#if defined(Py_GIL_DISABLED) || defined(CPPLOOP_SANITIZED)
  return false;
#else
  return true;
#endif
}

using FreeHandles = ModuleState::FreeHandles;

[[nodiscard]] FreeHandles& free_list_of(ModuleState& state, HandleKind kind) noexcept {
  return state.free_handles[static_cast<std::size_t>(kind)];
}

// A dead handle's slots are empty; one of them holds the next of its list.
[[nodiscard]] PyObject*& next_free(PyObject* handle) noexcept { return asyncio_part(handle).args; }

[[nodiscard]] PyObject* take_free(FreeHandles& list) noexcept {
  PyObject* handle = std::exchange(list.first, next_free(list.first));
  next_free(handle) = nullptr;
  --list.count;
  return handle;
}

void keep_free(FreeHandles& list, PyObject* handle) noexcept {
  next_free(handle) = std::exchange(list.first, handle);
  ++list.count;
}

// A handle with its slots empty, tracked by nobody yet.
[[nodiscard]] PyObject* allocate(ModuleState& state, PyTypeObject* type, HandleKind kind) {
  PyObject* handle = nullptr;
  FreeHandles& list = free_list_of(state, kind);
  if (list.count > 0) {
    handle = PyObject_Init(take_free(list), type);
  } else {
    handle = reinterpret_cast<PyObject*>(PyObject_GC_New(PyObject, type));
    if (handle == nullptr) {
      return nullptr;
    }
    std::memset(reinterpret_cast<char*>(handle) + sizeof(PyObject), 0,
                static_cast<std::size_t>(type->tp_basicsize) - sizeof(PyObject));
  }
  payload_of(handle).kind = kind;
  return handle;
}

[[nodiscard]] bool fill_arguments(AsyncioHandle& base, HandlePayload& payload,
                                  const HandleSpec& spec) {
  if (spec.arg_count <= static_cast<Py_ssize_t>(kInlineArgs)) {
    payload.arg_count = static_cast<std::uint16_t>(spec.arg_count);
    for (std::uint32_t i = 0; i < payload.arg_count; ++i) {
      argument_slot(base, i) = py::new_ref(spec.args[i]);
    }
    return true;
  }
  base.args = PyTuple_New(spec.arg_count);
  if (base.args == nullptr) {
    return false;
  }
  payload.arg_count = kArgsInTuple;
  for (Py_ssize_t i = 0; i < spec.arg_count; ++i) {
    PyTuple_SET_ITEM(base.args, i, py::new_ref(spec.args[i]));
  }
  return true;
}

[[nodiscard]] bool fill_context(ModuleState& state, AsyncioHandle& base, HandlePayload& payload,
                                const HandleSpec& spec) {
  if (spec.context != nullptr) {
    base.context = py::new_ref(spec.context);
  } else if (state.shares_contexts) {
    base.context = loop_of(spec.loop).contexts().like_current();
    payload.shares_context = base.context != nullptr;
  } else {
    base.context = PyContext_CopyCurrent();
  }
  return base.context != nullptr;
}

[[nodiscard]] bool note_where_made(ModuleState& state, AsyncioHandle& base) {
  PyFrameObject* frame = PyThreadState_GetFrame(PyThreadState_Get());
  Ref frame_ref =
      frame == nullptr ? Ref::steal(py::none()) : Ref::steal(reinterpret_cast<PyObject*>(frame));
  PyObject* stack = PyObject_CallOneArg(state.extract_stack, frame_ref.get());
  if (stack == nullptr) {
    return false;
  }
  Py_SETREF(base.source_traceback, stack);
  return true;
}

[[nodiscard]] bool fill(ModuleState& state, PyObject* handle, const HandleSpec& spec) {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  base.callback = py::new_ref(spec.callback);
  payload.loop = py::new_ref(spec.loop);
  base.repr = py::none();
  base.source_traceback = py::none();
  if (!fill_arguments(base, payload, spec) || !fill_context(state, base, payload, spec)) {
    return false;
  }
  return !loop_of(spec.loop).debug() || note_where_made(state, base);
}

[[nodiscard]] PyObject* finish(ModuleState& state, PyObject* handle, const HandleSpec& spec) {
  if (!fill(state, handle, spec)) {
    Py_DECREF(handle);
    return nullptr;
  }
  if (!spec.tracked_later) {
    PyObject_GC_Track(handle);
  }
  return handle;
}

void drop(PyObject*& slot) noexcept {
  if (slot != nullptr) {
    const Ref old = Ref::steal(std::exchange(slot, nullptr));
  }
}

void drop_context(AsyncioHandle& base, HandlePayload& payload, PyObject* loop) noexcept {
  if (std::exchange(payload.shares_context, false) && base.context != nullptr && loop != nullptr) {
    loop_of(loop).contexts().release(std::exchange(base.context, nullptr));
  } else {
    drop(base.context);
  }
}

// The loop apart, which the caller has.
void clear_slots(PyObject* handle, PyObject* loop) noexcept {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  drop_context(base, payload, loop);
  drop(base.args);
  drop(base.callback);
  drop(base.cancelled);
  drop(base.loop);
  drop(base.repr);
  drop(base.source_traceback);
  if (payload.kind == HandleKind::timer) {
    auto* timer = reinterpret_cast<TimerHandleObject*>(handle);
    drop(timer->scheduled);
    drop(timer->when);
  }
#if PY_VERSION_HEX >= 0x030E0000
  if (payload.kind == HandleKind::threadsafe) {
    drop(reinterpret_cast<ThreadSafeHandleObject*>(handle)->lock);
  }
#endif
}

// The handle's own context, in place of one that it may share. Takes the reference over.
void keep_context(PyObject* handle, PyObject* own) noexcept {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  PyObject* old = nullptr;
  bool shared = false;
  Py_BEGIN_CRITICAL_SECTION(handle);
  old = std::exchange(base.context, own);
  shared = std::exchange(payload.shares_context, false);
  Py_END_CRITICAL_SECTION();
  if (shared && old != nullptr) {
    loop_of(payload.loop).contexts().release(old);
  } else {
    const Ref dropped = Ref::steal(old);
  }
}

int handle_traverse(PyObject* handle, visitproc visit, void* arg) noexcept {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  Py_VISIT(Py_TYPE(handle));
  Py_VISIT(base.args);
  Py_VISIT(base.callback);
  Py_VISIT(base.cancelled);
  Py_VISIT(base.context);
  Py_VISIT(base.loop);
  Py_VISIT(payload.loop);
  Py_VISIT(base.repr);
  Py_VISIT(base.source_traceback);
  if (payload.kind == HandleKind::timer) {
    auto* timer = reinterpret_cast<TimerHandleObject*>(handle);
    Py_VISIT(timer->scheduled);
    Py_VISIT(timer->when);
  }
#if PY_VERSION_HEX >= 0x030E0000
  if (payload.kind == HandleKind::threadsafe) {
    Py_VISIT(reinterpret_cast<ThreadSafeHandleObject*>(handle)->lock);
  }
#endif
  return 0;
}

// Breaks cycles but keeps the loop: code that runs while garbage is taken apart may still cancel
// the handle, and the loop's own clear drops its queue.
int handle_clear(PyObject* handle) noexcept {
  clear_slots(handle, payload_of(handle).loop);
  return 0;
}

// Frees the handle or keeps it for the next one. The loop is what leads to the module's state: it
// is let go last.
void free_handle(PyObject* handle) noexcept {
  PyTypeObject* type = Py_TYPE(handle);
  const HandleKind kind = payload_of(handle).kind;
  Ref loop = Ref::steal(std::exchange(payload_of(handle).loop, nullptr));
  clear_slots(handle, loop.get());
  if (keeps_free_list() && loop) {
    ModuleState& state = loop_of(loop.get()).state();
    FreeHandles& list = free_list_of(state, kind);
    if (state.alive && list.count < ModuleState::kFreeHandlesMax) {
      payload_of(handle) = HandlePayload{};
      keep_free(list, handle);
      Py_DECREF(type);
      return;
    }
  }
  PyObject_GC_Del(handle);
  Py_DECREF(type);
}

void handle_dealloc(PyObject* handle) {
  PyObject_GC_UnTrack(handle);
  // A handle can hold a handle that holds a handle: a long chain must not use up the stack.
  Py_TRASHCAN_BEGIN(handle, handle_dealloc)
      py::unless_thread_ends([handle] { PyObject_ClearWeakRefs(handle); });
  free_handle(handle);
  Py_TRASHCAN_END
}

// ---- attributes ----

// asyncio's `_args`: a tuple, or None once the handle was cancelled.
[[nodiscard]] PyObject* args_tuple(PyObject* handle) {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  if (base.callback == nullptr || base.callback == Py_None) {
    return py::none();
  }
  if (payload.arg_count == kArgsInTuple) {
    return py::or_none(base.args);
  }
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(payload.arg_count));
  if (tuple != nullptr) {
    for (std::uint32_t i = 0; i < payload.arg_count; ++i) {
      PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), py::or_none(argument_slot(base, i)));
    }
  }
  return tuple;
}

PyObject* get_args(PyObject* handle, void*) {
  PyObject* args = nullptr;
  Py_BEGIN_CRITICAL_SECTION(handle);
  args = args_tuple(handle);
  Py_END_CRITICAL_SECTION();
  return args;
}
PyObject* get_cancelled(PyObject* handle, void*) {
  return py::boolean(payload_of(handle).cancelled);
}
PyObject* get_loop(PyObject* handle, void*) { return py::new_ref(loop_of_handle(handle)); }
PyObject* get_scheduled(PyObject* handle, void*) {
  return py::boolean(payload_of(handle).scheduled);
}

PyObject* method_cancel(PyObject* handle, PyObject*) {
  return py::guard([&]() -> PyObject* { return cancel_handle(handle) ? py::none() : nullptr; });
}

PyObject* method_cancelled(PyObject* handle, PyObject*) {
  return py::boolean(payload_of(handle).cancelled);
}

// The context that the handle runs in, its own from here on: whoever asks may change it. New
// reference, or null with the Python error set.
[[nodiscard]] PyObject* own_context(PyObject* handle) {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  if (payload.shares_context && base.context != nullptr) {
    PyObject* own = loop_of(payload.loop).contexts().copy_to_run(base.context);
    if (own == nullptr) {
      return nullptr;
    }
    keep_context(handle, own);
  }
  PyObject* context = nullptr;
  Py_BEGIN_CRITICAL_SECTION(handle);
  context = py::or_none(base.context);
  Py_END_CRITICAL_SECTION();
  return context;
}

// asyncio's own _run() would look for the lock of its thread-safe handles.
PyObject* method_run(PyObject* handle, PyObject*) {
  return py::guard([&]() -> PyObject* {
    // Who calls this has the handle, though its count of references need not show it.
    const Ref context = Ref::steal(own_context(handle));
    if (!context) {
      return nullptr;
    }
    if (!run_handle(handle)) {
      if (PyErr_ExceptionMatches(PyExc_SystemExit) != 0 ||
          PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0) {
        return nullptr;
      }
      loop_of(loop_of_handle(handle)).callback_failed(handle);
    }
    return py::none();
  });
}

#if PY_VERSION_HEX >= 0x030E0000
// Python 3.14's thread-safe handles answer only when a callback under way in another thread is
// over.
PyObject* method_cancelled_waiting(PyObject* handle, PyObject*) {
  Loop& loop = loop_of(loop_of_handle(handle));
  while (loop.runs_elsewhere(handle)) {
    loop.wait_for_callback(handle);
  }
  return method_cancelled(handle, nullptr);
}
#endif

PyObject* method_get_context(PyObject* handle, PyObject*) { return own_context(handle); }

PyObject* get_context(PyObject* handle, void*) {
  Ref context = Ref::steal(own_context(handle));
  if (context.is_none() && asyncio_part(handle).context == nullptr) {
    PyErr_SetString(PyExc_AttributeError, "_context");
    return nullptr;
  }
  return context.release();
}

int set_context(PyObject* handle, PyObject* context, void*) {
  Py_XINCREF(context);
  keep_context(handle, context);
  return 0;
}

PyObject* method_when(PyObject* handle, PyObject*) {
  const auto* timer = reinterpret_cast<TimerHandleObject*>(handle);
  PyObject* when = nullptr;
  Py_BEGIN_CRITICAL_SECTION(handle);
  when = timer->when;
  Py_XINCREF(when);
  Py_END_CRITICAL_SECTION();
  return when != nullptr ? when : PyFloat_FromDouble(timer->when_seconds);
}

PyObject* get_when(PyObject* handle, void*) { return method_when(handle, nullptr); }

// As asyncio's slot: it changes what the handle says, not when it runs.
int set_when(PyObject* handle, PyObject* when, void*) {
  auto* timer = reinterpret_cast<TimerHandleObject*>(handle);
  Ref old;
  Py_BEGIN_CRITICAL_SECTION(handle);
  old = Ref::steal(std::exchange(timer->when, py::or_none(when)));
  Py_END_CRITICAL_SECTION();
  return 0;
}

PyMethodDef handle_methods[] = {
    {"cancel", method_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\nCancel the callback (asyncio.Handle.cancel). A second call does "
     "nothing."},
    {"cancelled", method_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether the callback was cancelled (asyncio.Handle.cancelled)."},
    {"get_context", method_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\n"
     "The contextvars.Context the callback runs in (asyncio.Handle.get_context)."},
    {"_run", method_run, METH_NOARGS, "_run($self, /)\n--\n\nCall the callback now."},
    {nullptr, nullptr, 0, nullptr},
};

PyMethodDef timer_methods[] = {
    {"cancel", method_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\nCancel the timer (asyncio.TimerHandle.cancel). A second call does "
     "nothing."},
    {"cancelled", method_cancelled, METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether the timer was cancelled (asyncio.TimerHandle.cancelled)."},
    {"get_context", method_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\n"
     "The contextvars.Context the callback runs in (asyncio.Handle.get_context)."},
    {"_run", method_run, METH_NOARGS, "_run($self, /)\n--\n\nCall the callback now."},
    {"when", method_when, METH_NOARGS,
     "when($self, /)\n--\n\n"
     "The time the timer is due, in seconds of loop.time() (asyncio.TimerHandle.when)."},
    {nullptr, nullptr, 0, nullptr},
};

#if PY_VERSION_HEX >= 0x030E0000
PyMethodDef threadsafe_methods[] = {
    {"cancel", method_cancel, METH_NOARGS,
     "cancel($self, /)\n--\n\n"
     "Cancel the callback, from any thread (asyncio.Handle.cancel).\n\n"
     "In another thread than the loop's it waits while the callback is being called."},
    {"cancelled", method_cancelled_waiting, METH_NOARGS,
     "cancelled($self, /)\n--\n\nWhether the callback was cancelled (asyncio.Handle.cancelled)."},
    {"get_context", method_get_context, METH_NOARGS,
     "get_context($self, /)\n--\n\n"
     "The contextvars.Context the callback runs in (asyncio.Handle.get_context)."},
    {"_run", method_run, METH_NOARGS, "_run($self, /)\n--\n\nCall the callback now."},
    {nullptr, nullptr, 0, nullptr},
};

#endif

PyGetSetDef handle_getset[] = {
    {"_args", get_args, nullptr, nullptr, nullptr},
    {"_cancelled", get_cancelled, nullptr, nullptr, nullptr},
    {"_context", get_context, set_context, nullptr, nullptr},
    {"_loop", get_loop, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyGetSetDef timer_getset[] = {
    {"_args", get_args, nullptr, nullptr, nullptr},
    {"_cancelled", get_cancelled, nullptr, nullptr, nullptr},
    {"_context", get_context, set_context, nullptr, nullptr},
    {"_loop", get_loop, nullptr, nullptr, nullptr},
    {"_scheduled", get_scheduled, nullptr, nullptr, nullptr},
    {"_when", get_when, set_when, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot handle_slots[] = {
    {Py_tp_doc, const_cast<char*>("A callback that is to run (asyncio.Handle).")},
    {Py_tp_dealloc, reinterpret_cast<void*>(handle_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(handle_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(handle_clear)},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},
    {0, nullptr},
};

PyType_Slot timer_slots[] = {
    {Py_tp_doc,
     const_cast<char*>("A callback that is to run at a set time (asyncio.TimerHandle).")},
    {Py_tp_dealloc, reinterpret_cast<void*>(handle_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(handle_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(handle_clear)},
    {Py_tp_methods, timer_methods},
    {Py_tp_getset, timer_getset},
    {0, nullptr},
};

#if PY_VERSION_HEX >= 0x030E0000
PyType_Slot threadsafe_slots[] = {
    {Py_tp_doc, const_cast<char*>("A callback from another thread (asyncio.Handle).")},
    {Py_tp_dealloc, reinterpret_cast<void*>(handle_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(handle_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(handle_clear)},
    {Py_tp_methods, threadsafe_methods},
    {Py_tp_getset, handle_getset},
    {0, nullptr},
};

PyType_Spec threadsafe_spec = {
    "cpploop._native._ThreadSafeHandle",
    sizeof(ThreadSafeHandleObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    threadsafe_slots,
};
#endif

PyType_Spec handle_spec = {
    "cpploop._native.Handle",
    sizeof(HandleObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    handle_slots,
};

PyType_Spec timer_spec = {
    "cpploop._native.TimerHandle",
    sizeof(TimerHandleObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    timer_slots,
};

// ---- asyncio's layout ----

[[nodiscard]] bool slot_is_at(PyObject* type, const char* name, std::size_t offset) {
  Ref descriptor = Ref::steal(PyObject_GetAttrString(type, name));
  if (!descriptor) {
    return false;
  }
  if (Py_IS_TYPE(descriptor.get(), &PyMemberDescr_Type) &&
      reinterpret_cast<PyMemberDescrObject*>(descriptor.get())->d_member->offset ==
          static_cast<Py_ssize_t>(offset)) {
    return true;
  }
  PyErr_Format(PyExc_ImportError,
               "cpploop was not built for this Python: %R has its slot %s elsewhere", type, name);
  return false;
}

[[nodiscard]] bool layout_fits(PyObject* handle_type, PyObject* timer_type) {
  struct Expected {
    const char* name;
    std::size_t offset;
  };
  constexpr Expected handle_slots_expected[] = {
      {"_args", offsetof(AsyncioHandle, args)},
      {"_callback", offsetof(AsyncioHandle, callback)},
      {"_cancelled", offsetof(AsyncioHandle, cancelled)},
      {"_context", offsetof(AsyncioHandle, context)},
      {"_loop", offsetof(AsyncioHandle, loop)},
      {"_repr", offsetof(AsyncioHandle, repr)},
      {"_source_traceback", offsetof(AsyncioHandle, source_traceback)},
  };
  for (const Expected& expected : handle_slots_expected) {
    if (!slot_is_at(handle_type, expected.name, expected.offset)) {
      return false;
    }
  }
  const auto size_of = [](PyObject* type) {
    return reinterpret_cast<PyTypeObject*>(type)->tp_basicsize;
  };
  if (size_of(handle_type) != static_cast<Py_ssize_t>(sizeof(AsyncioHandle)) ||
      size_of(timer_type) != static_cast<Py_ssize_t>(offsetof(TimerHandleObject, when_seconds))) {
    PyErr_SetString(PyExc_ImportError,
                    "cpploop was not built for this Python: asyncio's handles have another size");
    return false;
  }
  return slot_is_at(timer_type, "_scheduled", offsetof(TimerHandleObject, scheduled)) &&
         slot_is_at(timer_type, "_when", offsetof(TimerHandleObject, when));
}

[[nodiscard]] PyTypeObject* make_type(PyObject* module, PyType_Spec& spec, PyObject* base) {
  Ref bases = Ref::steal(PyTuple_Pack(1, base));
  if (!bases) {
    return nullptr;
  }
  return reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &spec, bases.get()));
}

}  // namespace

PyObject* new_handle(ModuleState& state, const HandleSpec& spec) {
  PyObject* handle = allocate(state, state.handle_type, HandleKind::plain);
  return handle == nullptr ? nullptr : finish(state, handle, spec);
}

PyObject* new_threadsafe_handle(ModuleState& state, const HandleSpec& spec) {
  if (state.threadsafe_handle_type == nullptr) {
    return new_handle(state, spec);
  }
  PyObject* handle = allocate(state, state.threadsafe_handle_type, HandleKind::threadsafe);
  return handle == nullptr ? nullptr : finish(state, handle, spec);
}

PyObject* new_timer_handle(ModuleState& state, const HandleSpec& spec, const DueTime& when) {
  PyObject* handle = allocate(state, state.timer_handle_type, HandleKind::timer);
  if (handle == nullptr) {
    return nullptr;
  }
  auto* timer = reinterpret_cast<TimerHandleObject*>(handle);
  timer->when_seconds = when.seconds;
  timer->when = when.object;
  Py_XINCREF(when.object);
  return finish(state, handle, spec);
}

namespace {

// What a call of a handle's callback needs, held while it lasts: the callback may cancel its own
// handle, and another thread may do so at any time.
struct HeldCall {
  Ref callback;
  Ref context;
  Ref args_tuple;
  std::array<PyObject*, kInlineArgs + 1> arguments{};
  std::uint32_t count = 0;

  HeldCall() noexcept = default;
  HeldCall(const HeldCall&) = delete;
  HeldCall& operator=(const HeldCall&) = delete;
  ~HeldCall() {
    for (std::uint32_t i = 0; i < count; ++i) {
      const Ref argument = Ref::steal(arguments[i + 1]);
    }
  }

  // False where the handle is cancelled or lacks something.
  [[nodiscard]] bool take(PyObject* handle) noexcept {
    AsyncioHandle& base = asyncio_part(handle);
    HandlePayload& payload = payload_of(handle);
    if (payload.cancelled || base.callback == nullptr || base.context == nullptr) {
      return false;
    }
    if (payload.arg_count == kArgsInTuple) {
      if (base.args == nullptr || !PyTuple_CheckExact(base.args)) [[unlikely]] {
        return false;  // Exchanged through asyncio's own slot.
      }
      args_tuple = Ref::borrow(base.args);
    } else {
      for (; count < payload.arg_count; ++count) {
        PyObject* argument = argument_slot(base, count);
        if (argument == nullptr) [[unlikely]] {
          return false;  // Deleted through asyncio's own slot.
        }
        arguments[count + 1] = py::new_ref(argument);
      }
    }
    callback = Ref::borrow(base.callback);
    context = Ref::borrow(base.context);
    return true;
  }

  // The callback's result; empty with the Python error set.
  [[nodiscard]] Ref call() {
    return Ref::steal(args_tuple
                          ? PyObject_Call(callback.get(), args_tuple.get(), nullptr)
                          : PyObject_Vectorcall(callback.get(), arguments.data() + 1,
                                                count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
  }

  [[nodiscard]] bool call_in_context() {
    if (PyContext_Enter(context.get()) != 0) {
      return false;
    }
    const Ref result = call();
    const bool left = PyContext_Exit(context.get()) == 0;
    return left && result;
  }
};

// In a copy of the context that the handle shares. It becomes the handle's own where somebody may
// ask for it: who has the handle now, or is told of the error.
[[nodiscard]] bool call_in_copy(PyObject* handle, HeldCall& held) {
  HandlePayload& payload = payload_of(handle);
  SharedContexts& contexts = loop_of(payload.loop).contexts();
  PyObject* const shared = held.context.get();
  if (contexts.has_last_user(shared)) {
    payload.shares_context = false;
    return held.call_in_context();
  }
  // The handle alone holds what it shared, so that its values end with the last who does.
  held.context = Ref::steal(contexts.copy_to_run(shared));
  if (!held.context) {
    return false;
  }
  if (Py_REFCNT(handle) > 1) {
    keep_context(handle, held.context.dup().release());
    return held.call_in_context();
  }
  const bool ok = held.call_in_context();
  if (!ok) {
    keep_context(handle, held.context.release());
  } else {
    contexts.ran(shared, std::move(held.context));
  }
  return ok;
}

}  // namespace

bool run_handle(PyObject* handle) {
  HandlePayload& payload = payload_of(handle);
  HeldCall held;
  bool taken = false;
  const bool threadsafe = payload.kind == HandleKind::threadsafe;
  Py_BEGIN_CRITICAL_SECTION(handle);
  taken = held.take(handle);
  if (taken && threadsafe) {
    std::atomic_ref(payload.running).store(true, kRunningOrder);
  }
  Py_END_CRITICAL_SECTION();
  if (!taken) {
    if (payload.cancelled) {
      return true;
    }
    PyErr_SetString(PyExc_AttributeError,
                    "the handle's callback, arguments or context were deleted");
    return false;
  }
  const bool ok = payload.shares_context ? call_in_copy(handle, held) : held.call_in_context();
  if (threadsafe) {
    loop_of(payload.loop).callback_over(handle);
  }
  return ok;
}

bool cancel_handle(PyObject* handle) {
  AsyncioHandle& base = asyncio_part(handle);
  HandlePayload& payload = payload_of(handle);
  Loop& loop = loop_of(payload.loop);
  bool busy = false;
  bool first = false;
  Py_BEGIN_CRITICAL_SECTION(handle);
  // Checked and marked in one go: run_handle() does the same the other way round.
  busy = payload.kind == HandleKind::threadsafe && loop.runs_elsewhere(handle);
  if (!busy) {
    first = !payload.cancelled;
    payload.cancelled = true;
  }
  Py_END_CRITICAL_SECTION();
  if (busy) {
    loop.wait_for_callback(handle);
    return cancel_handle(handle);
  }
  if (!first) {
    return true;
  }
  if (loop.debug()) {
    // Made while the callback is still there to be named.
    PyObject* text = PyObject_Repr(handle);
    if (text == nullptr) {
      return false;
    }
    Py_XSETREF(base.repr, text);
  }
  // Taken out under the lock, dropped outside it: their ends may run any code.
  Ref callback;
  std::array<Ref, kInlineArgs> arguments;  // Or the tuple, in the first.
  bool leaves_heap = false;
  Py_BEGIN_CRITICAL_SECTION(handle);
  callback = Ref::steal(std::exchange(base.callback, py::none()));
  for (std::uint32_t i = 0; i < kInlineArgs; ++i) {
    arguments[i] = Ref::steal(std::exchange(argument_slot(base, i), nullptr));
  }
  payload.arg_count = 0;
  leaves_heap = payload.kind == HandleKind::timer && payload.scheduled;
  Py_END_CRITICAL_SECTION();
  if (leaves_heap) {
    loop.timer_cancelled(handle);
  }
  return true;
}

void track_handle(PyObject* handle) noexcept {
  if (PyObject_GC_IsTracked(handle) == 0) {
    PyObject_GC_Track(handle);
  }
}

void free_handle_lists(ModuleState& state) noexcept {
  // Their references to the type were given up when they were put here.
  for (FreeHandles& list : state.free_handles) {
    while (list.count > 0) {
      PyObject_GC_Del(take_free(list));
    }
  }
}

void trim_handle_lists(ModuleState& state) noexcept {
  for (FreeHandles& list : state.free_handles) {
    for (int left = (list.count - ModuleState::kFreeHandlesKept + 31) / 32; left > 0; --left) {
      PyObject_GC_Del(take_free(list));
    }
  }
}

bool add_handle_types(PyObject* module, ModuleState& state) {
  Ref events = Ref::steal(PyImport_ImportModule("asyncio.events"));
  if (!events) {
    return false;
  }
  Ref handle_base = Ref::steal(PyObject_GetAttrString(events.get(), "Handle"));
  Ref timer_base =
      handle_base ? Ref::steal(PyObject_GetAttrString(events.get(), "TimerHandle")) : Ref();
  if (!timer_base || !layout_fits(handle_base.get(), timer_base.get())) {
    return false;
  }
  state.shares_contexts = can_share_contexts();
  state.handle_type = make_type(module, handle_spec, handle_base.get());
  state.timer_handle_type = make_type(module, timer_spec, timer_base.get());
  if (state.handle_type == nullptr || state.timer_handle_type == nullptr ||
      PyModule_AddType(module, state.handle_type) != 0 ||
      PyModule_AddType(module, state.timer_handle_type) != 0) {
    return false;
  }
#if PY_VERSION_HEX >= 0x030E0000
  Ref threadsafe_base = Ref::steal(PyObject_GetAttrString(events.get(), "_ThreadSafeHandle"));
  if (!threadsafe_base ||
      !slot_is_at(threadsafe_base.get(), "_lock", offsetof(ThreadSafeHandleObject, lock))) {
    return false;
  }
  state.threadsafe_handle_type = make_type(module, threadsafe_spec, threadsafe_base.get());
  return state.threadsafe_handle_type != nullptr &&
         PyModule_AddType(module, state.threadsafe_handle_type) == 0;
#else
  return true;
#endif
}

}  // namespace cpploop

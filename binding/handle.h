#pragma once

#include <atomic>
#include <cstdint>

#include "binding/module_state.h"
#include "binding/py/python.h"

namespace cpploop {

// The layout of asyncio.Handle, whose slots (in alphabetical order, as Python lays them out) our
// handles use as they are. add_handle_types() checks every offset before the first handle is made.
struct AsyncioHandle {
  PyObject_HEAD PyObject* args;
  PyObject* callback;
  PyObject* cancelled;
  PyObject* context;
  PyObject* loop;
  PyObject* repr;
  PyObject* source_traceback;
#if PY_VERSION_HEX < 0x030C0000
  PyObject* weakrefs;
#endif
};

// Up to three arguments live in those of asyncio's slots that we need for nothing else, and which
// getters of ours hide; more make a tuple in the first of them.
inline constexpr std::uint16_t kInlineArgs = 3;
inline constexpr std::uint16_t kArgsInTuple = 0xFFFF;

// How the mark of a running callback is written.
inline constexpr std::memory_order kRunningOrder =
    py::kFreeThreaded ? std::memory_order_seq_cst : std::memory_order_relaxed;

enum class HandleKind : std::uint8_t { plain, timer, threadsafe };

struct HandlePayload {
  std::uint16_t arg_count;  // At most kInlineArgs, or kArgsInTuple.
  HandleKind kind;
  bool cancelled;
  bool scheduled;       // A timer that is in the heap.
  bool counted;         // A cancelled timer that the heap knows to be dead.
  bool running;         // A thread-safe handle whose callback is being called.
  bool shares_context;  // With other handles, see SharedContexts; what it runs in is a copy.
  // The loop, in a place that Python code cannot write to.
  PyObject* loop;
};

// A callback in the ready queue: a true asyncio.Handle.
struct HandleObject {
  AsyncioHandle base;
  HandlePayload payload;
};

// A timer: a true asyncio.TimerHandle.
struct TimerHandleObject {
  AsyncioHandle base;
  PyObject* scheduled;
  PyObject* when;  // Null where it is the float below.
  double when_seconds;
  HandlePayload payload;
};

#if PY_VERSION_HEX >= 0x030E0000
// What call_soon_threadsafe() returns: a true asyncio.events._ThreadSafeHandle, whose cancel()
// waits, in another thread, for a callback that is under way. Before Python 3.14 it is a plain
// handle.
struct ThreadSafeHandleObject {
  AsyncioHandle base;
  PyObject* lock;
  HandlePayload payload;
};
#endif

[[nodiscard]] inline HandlePayload& payload_of(PyObject* handle) noexcept {
  // All types are final, so the payload is always the last thing in the object.
  return *reinterpret_cast<HandlePayload*>(reinterpret_cast<char*>(handle) +
                                           Py_TYPE(handle)->tp_basicsize - sizeof(HandlePayload));
}

[[nodiscard]] inline AsyncioHandle& asyncio_part(PyObject* handle) noexcept {
  return *reinterpret_cast<AsyncioHandle*>(handle);
}

[[nodiscard]] inline PyObject*& argument_slot(AsyncioHandle& base, std::uint32_t index) noexcept {
  return index == 0 ? base.args : index == 1 ? base.cancelled : base.loop;
}

[[nodiscard]] inline PyObject* loop_of_handle(PyObject* handle) noexcept {
  return payload_of(handle).loop;
}

// What a handle is made from. `context` may be null: then the current one is copied.
struct HandleSpec {
  PyObject* loop;
  PyObject* callback;
  PyObject* const* args;
  Py_ssize_t arg_count;
  PyObject* context;
  // Not told to the collector yet: the loop does it by track_handle().
  bool tracked_later = false;
};

// When a timer is due: what its when() says. `object` is null for a plain float.
struct DueTime {
  double seconds;
  PyObject* object;
};

// New references, or null with the Python error set.
[[nodiscard]] PyObject* new_handle(ModuleState& state, const HandleSpec& spec);
[[nodiscard]] PyObject* new_threadsafe_handle(ModuleState& state, const HandleSpec& spec);
[[nodiscard]] PyObject* new_timer_handle(ModuleState& state, const HandleSpec& spec,
                                         const DueTime& when);

// Calls the callback in its context. False with the Python error set if it raised. A cancelled
// handle does nothing.
[[nodiscard]] bool run_handle(PyObject* handle);

[[nodiscard]] inline bool handle_cancelled(PyObject* handle) noexcept {
  return payload_of(handle).cancelled;
}

// Marks the handle cancelled and drops its callback and arguments, as Handle.cancel() does. False
// with the Python error set if its repr, kept in debug mode, failed.
[[nodiscard]] bool cancel_handle(PyObject* handle);

// Tells the collector of a handle, unless that was done.
void track_handle(PyObject* handle) noexcept;

void free_handle_lists(ModuleState& state) noexcept;
// Gives back a part of the dead handles that a burst has left.
void trim_handle_lists(ModuleState& state) noexcept;

}  // namespace cpploop

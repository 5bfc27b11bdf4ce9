#pragma once

#include <cstdint>
#include <utility>

#include "binding/loop.h"
#include "binding/py/guard.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "core/os/unique_fd.h"

// What several kinds of transport do in the same way.
namespace cpploop {

// How many writes into nothing asyncio lets pass before it warns.
inline constexpr std::uint32_t kWarnAfterLostWrites = 5;

// Schedules what ends the opening of a transport: its waiter (null: none) is told.
[[nodiscard]] bool schedule_waiter(Loop& loop, PyObject* waiter, PyObject* context);
// Schedules the whole opening in asyncio's order: connection_made, then the start of reading, then
// the waiter, as three callbacks. Both are false with the Python error set.
[[nodiscard]] bool schedule_opening(Loop& loop, PyObject* transport, PyObject* protocol,
                                    PyObject* waiter, PyObject* context);
// Schedules transport._call_connection_lost(exception).
[[nodiscard]] bool schedule_connection_lost(Loop& loop, PyObject* transport, PyObject* exception,
                                            PyObject* context);

// Opens a new transport on a descriptor. When that fails, by a Python error or by an exception, the
// transport gives back what it took; a descriptor that never became a socket's stays in `fd`. Null
// with the Python error set.
template <typename Transport, typename... Arguments>
[[nodiscard]] PyObject* open_or_give_back(py::Ref self, Transport& transport, UniqueFd& fd,
                                          const Arguments&... arguments) {
  const auto open = [&] { return transport.open(std::move(fd), arguments...) ? 0 : -1; };
  if (py::guard_int(open) == 0) {
    return self.release();
  }
  py::PendingError error = py::PendingError::take();
  transport.give_back();
  error.restore();
  return nullptr;
}

// The same on a Python socket's descriptor, which stays that socket's when it fails. The account of
// descriptors names who made `shared`.
template <typename Transport, typename... Arguments>
[[nodiscard]] PyObject* open_on_shared(py::Ref self, Transport& transport, UniqueFd shared,
                                       const Arguments&... arguments) {
  PyObject* opened = open_or_give_back(std::move(self), transport, shared, arguments...);
  if (shared) {
    (void)shared.release();
  }
  return opened;
}

// Closes a descriptor that a Python socket (null: none) shares. That lets go first; if it no longer
// holds the number, somebody closed it behind our back, the number may be another file's by now,
// and it is not ours to close.
void detach_and_close(ModuleState& state, UniqueFd fd, PyObject* python_socket);

// The ResourceWarning of a transport that is collected while it is open.
void warn_unclosed(ModuleState& state, PyObject* transport);

// Calls a logging helper of the edge with the transport; in debug mode only.
void log_in_debug(Loop& loop, PyObject* transport, const char* function, const char* text);

// protocol.pause_writing() or resume_writing(); what it raises goes to the exception handler.
void call_flow_control(Loop& loop, PyObject* transport, PyObject* protocol, PyObject* name,
                       const char* failure);

// asyncio's warning about a program that goes on writing into nothing, when `lost_count` writes
// were. `log` names the helper of the edge. False with the Python error set.
[[nodiscard]] bool warn_of_lost_writes(ModuleState& state, std::uint32_t lost_count, PyObject* log);

}  // namespace cpploop

#include "binding/transport_parts.h"

#include "binding/transport_object.h"

namespace cpploop {

using py::PendingError;
using py::Ref;

bool schedule_waiter(Loop& loop, PyObject* waiter, PyObject* context) {
  if (waiter == nullptr) {
    return true;
  }
  PyObject* arguments[] = {waiter, Py_None};
  return loop.schedule(loop.state().set_result_unless_cancelled, arguments, 2, context);
}

bool schedule_opening(Loop& loop, PyObject* transport, PyObject* protocol, PyObject* waiter,
                      PyObject* context) {
  ModuleState& state = loop.state();
  Ref connection_made = Ref::steal(PyObject_GetAttr(protocol, state.str_connection_made));
  Ref start =
      connection_made ? Ref::steal(PyObject_GetAttr(transport, state.str__start_reading)) : Ref();
  return start && loop.schedule(connection_made.get(), &transport, 1, context) &&
         loop.schedule(start.get(), nullptr, 0, context) && schedule_waiter(loop, waiter, context);
}

bool schedule_connection_lost(Loop& loop, PyObject* transport, PyObject* exception,
                              PyObject* context) {
  Ref method = Ref::steal(PyObject_GetAttr(transport, loop.state().str__call_connection_lost));
  return method && loop.schedule(method.get(), &exception, 1, context);
}

void detach_and_close(ModuleState& state, UniqueFd fd, PyObject* python_socket) {
  if (python_socket == nullptr) {
    return;
  }
  PendingError saved = PendingError::take();
  Ref detached = Ref::steal(PyObject_CallMethodNoArgs(python_socket, state.str_detach));
  const long number = detached ? PyLong_AsLong(detached.get()) : -1;
  PyErr_Clear();
  saved.restore();
  if (number != fd.get()) {
    (void)fd.release();
  }
}

void warn_unclosed(ModuleState& state, PyObject* transport) {
  Ref warned = Ref::steal(
      PyObject_CallMethodObjArgs(state.support, state.str__unclosed, transport, nullptr));
  if (!warned) {
    PyErr_WriteUnraisable(transport);
  }
}

void log_in_debug(Loop& loop, PyObject* transport, const char* function, const char* text) {
  if (loop.debug()) {
    Ref logged =
        Ref::steal(PyObject_CallMethod(loop.state().support, function, "sO", text, transport));
    if (!logged) {
      PyErr_WriteUnraisable(transport);
    }
  }
}

void call_flow_control(Loop& loop, PyObject* transport, PyObject* protocol, PyObject* name,
                       const char* failure) {
  const Ref held = Ref::borrow(protocol);
  Ref result = Ref::steal(PyObject_CallMethodNoArgs(protocol, name));
  if (!result) {
    loop.report(failure, PendingError::take(), transport, protocol);
  }
}

bool warn_of_lost_writes(ModuleState& state, std::uint32_t lost_count, PyObject* log) {
  if (lost_count < kWarnAfterLostWrites) {
    return true;
  }
  Ref logged = Ref::steal(PyObject_CallMethodNoArgs(state.support, log));
  return static_cast<bool>(logged);
}

Ref asyncio_transport_class(const char* name, std::size_t size) {
  Ref transports = Ref::steal(PyImport_ImportModule("asyncio.transports"));
  Ref found = transports ? Ref::steal(PyObject_GetAttrString(transports.get(), name)) : Ref();
  if (found &&
      reinterpret_cast<PyTypeObject*>(found.get())->tp_basicsize != static_cast<Py_ssize_t>(size)) {
    PyErr_Format(PyExc_ImportError,
                 "cpploop was not built for this Python: asyncio's %s has another size", name);
    return {};
  }
  return found;
}

}  // namespace cpploop

#pragma once

#include "binding/loop.h"
#include "binding/py/guard.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"

// How a Python method of a transport enters the native one.
namespace cpploop {

// The transport, if it may be used from here. Null with the Python error set: on free-threaded
// builds another thread than the loop's is refused always.
template <typename Transport>
[[nodiscard]] Transport* usable_transport(Transport& transport) {
  if (!transport.opened()) {
    PyErr_SetString(PyExc_RuntimeError, "the transport was never opened");
    return nullptr;
  }
  // A closed loop's transports still answer; a forked child's must not touch the parent's
  // connection.
  if ((transport.loop().forked() && !transport.loop().check_open()) ||
      (py::kFreeThreaded && !transport.loop().check_thread())) {
    return nullptr;
  }
  return &transport;
}

template <typename Transport, typename Body>
[[nodiscard]] PyObject* call_on_transport(Transport& any, Body body) {
  return py::guard([&]() -> PyObject* {
    Transport* transport = usable_transport(any);
    if (transport == nullptr) {
      return nullptr;
    }
    Loop& loop = transport->loop();
    const bool was_leaving = loop.leaving();
    PyObject* result = body(*transport);
    if (!was_leaving && loop.leaving()) [[unlikely]] {
      // What a protocol raised inside this very call (KeyboardInterrupt in pause_writing(), say) is
      // the caller's to see first.
      const py::Ref dropped = py::Ref::steal(result);
      PyErr_Clear();
      loop.raise_leaving();
      return nullptr;
    }
    return result;
  });
}

}  // namespace cpploop

#pragma once

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop::py {

// What a weak reference leads to, or nothing when that is gone or this is no weak reference. No
// error is left set.
[[nodiscard]] inline Ref referent(PyObject* reference) noexcept {
  if (!PyWeakref_CheckRef(reference)) {
    return {};
  }
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object = nullptr;
  if (PyWeakref_GetRef(reference, &object) < 0) {
    PyErr_Clear();
  }
  return Ref::steal(object);
#else
  PyObject* object = PyWeakref_GET_OBJECT(reference);
  return Ref::borrow(object == Py_None ? nullptr : object);
#endif
}

}  // namespace cpploop::py

// The Python type _native.SockOperation: a coroutine, for `await`, asyncio and inspection.

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "binding/sock_operation.h"

namespace cpploop {
namespace {

using py::Ref;

// A result as the older protocol tells it: by raising StopIteration. None needs no exception.
[[nodiscard]] PyObject* as_iteration(PySendResult outcome, PyObject* result, bool for_next) {
  if (outcome != PYGEN_RETURN) {
    return result;
  }
  Ref value = Ref::steal(result);
  if (value.is_none()) {
    if (!for_next) {
      PyErr_SetNone(PyExc_StopIteration);
    }
    return nullptr;
  }
  // Made by hand, because a tuple would be taken for the exception's arguments.
  Ref stop = Ref::steal(PyObject_CallOneArg(PyExc_StopIteration, value.get()));
  if (stop) {
    PyErr_SetObject(PyExc_StopIteration, stop.get());
  }
  return nullptr;
}

PySendResult operation_am_send(PyObject* self, PyObject* value, PyObject** result) {
  return sock_operation_of(self).send(value, result);
}

PyObject* operation_send(PyObject* self, PyObject* value) {
  PyObject* result = nullptr;
  const PySendResult outcome = operation_am_send(self, value, &result);
  return as_iteration(outcome, result, false);
}

PyObject* operation_next(PyObject* self) {
  PyObject* result = nullptr;
  const PySendResult outcome = operation_am_send(self, nullptr, &result);
  return as_iteration(outcome, result, true);
}

// An operation is its own iterator.
PyObject* operation_await(PyObject* self) {
  if (sock_operation_of(self).suspended()) {
    PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
    return nullptr;
  }
  return py::new_ref(self);
}

// What throw() was given, as one exception: an instance, a class, or the old three arguments.
[[nodiscard]] Ref exception_to_throw(PyObject* const* values, Py_ssize_t count) {
  PyObject* type = values[0];
  PyObject* value = count > 1 && values[1] != Py_None ? values[1] : nullptr;
  PyObject* traceback = count > 2 && values[2] != Py_None ? values[2] : nullptr;
  if (traceback != nullptr && !PyTraceBack_Check(traceback)) {
    PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
    return {};
  }
  Ref exception;
  if (PyExceptionInstance_Check(type)) {
    if (value != nullptr) {
      PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
      return {};
    }
    exception = Ref::borrow(type);
  } else if (PyExceptionClass_Check(type)) {
    if (value != nullptr && PyObject_IsInstance(value, type) == 1) {
      exception = Ref::borrow(value);
    } else if (value != nullptr && PyTuple_Check(value)) {
      exception = Ref::steal(PyObject_CallObject(type, value));
    } else {
      exception = Ref::steal(value == nullptr ? PyObject_CallNoArgs(type)
                                              : PyObject_CallOneArg(type, value));
    }
    if (exception && !PyExceptionInstance_Check(exception.get())) {
      PyErr_Format(PyExc_TypeError,
                   "calling %R should have returned an instance of BaseException, not %R", type,
                   Py_TYPE(exception.get()));
      return {};
    }
  } else {
    PyErr_Format(PyExc_TypeError,
                 "exceptions must be classes or instances deriving from BaseException, not %s",
                 Py_TYPE(type)->tp_name);
    return {};
  }
  if (exception && traceback != nullptr &&
      PyException_SetTraceback(exception.get(), traceback) != 0) {
    return {};
  }
  return exception;
}

PyObject* operation_throw(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  if (count < 1 || count > 3) {
    PyErr_Format(PyExc_TypeError, "throw expected %s, got %zd",
                 count < 1 ? "at least 1 argument" : "at most 3 arguments", count);
    return nullptr;
  }
#if PY_VERSION_HEX >= 0x030C0000
  if (count > 1 &&
      PyErr_WarnEx(PyExc_DeprecationWarning,
                   "the (type, exc, tb) signature of throw() is deprecated, use the single-arg "
                   "signature instead.",
                   1) != 0) {
    return nullptr;
  }
#endif
  Ref exception = exception_to_throw(values, count);
  if (!exception) {
    return nullptr;
  }
  PyObject* result = nullptr;
  const PySendResult outcome = sock_operation_of(self).throw_in(exception.get(), &result);
  return as_iteration(outcome, result, false);
}

PyObject* operation_close(PyObject* self, PyObject*) {
  return sock_operation_of(self).close() ? py::none() : nullptr;
}

// ---- attributes ----

PyObject* get_name(PyObject* self, void*) {
  return PyUnicode_FromString(traits_of(sock_operation_of(self).call()).name);
}

PyObject* get_qualname(PyObject* self, void*) {
  return PyUnicode_FromFormat("Loop.%s", traits_of(sock_operation_of(self).call()).name);
}

PyObject* get_running(PyObject* self, void*) {
  return py::boolean(sock_operation_of(self).running());
}
PyObject* get_suspended(PyObject* self, void*) {
  return py::boolean(sock_operation_of(self).suspended());
}
PyObject* get_state(PyObject* self, void*) {
  return PyUnicode_FromString(sock_operation_of(self).state_name());
}
// There is no Python code and so no frame: asyncio's tools know that of other native coroutines.
PyObject* get_none(PyObject*, void*) { return py::none(); }

PyObject* operation_repr(PyObject* self) {
  return PyUnicode_FromFormat("<coroutine object Loop.%s at %p>",
                              traits_of(sock_operation_of(self).call()).name, self);
}

// ---- life ----

int operation_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return sock_operation_of(self).traverse(visit, arg);
}

int operation_clear(PyObject* self) {
  sock_operation_of(self).clear();
  return 0;
}

void operation_finalize(PyObject* self) { sock_operation_of(self).finalize(); }

void operation_dealloc(PyObject* self) {
  if (PyObject_CallFinalizerFromDealloc(self) != 0) {
    return;  // The warning's receiver keeps it.
  }
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  if (reinterpret_cast<SockOperationObject*>(self)->weakrefs != nullptr) {
    PyObject_ClearWeakRefs(self);
  }
  sock_operation_of(self).~SockOperation();
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef operation_methods[] = {
    {"send", operation_send, METH_O,
     "send($self, value, /)\n--\n\nGo on with the operation (a coroutine's send())."},
    {"throw", py::as_cfunction(operation_throw), METH_FASTCALL,
     "throw($self, typ, val=None, tb=None, /)\n--\n\n"
     "End the operation with an exception (a coroutine's throw())."},
    {"close", operation_close, METH_NOARGS,
     "close($self, /)\n--\n\nGive the operation up (a coroutine's close())."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef operation_getset[] = {
    {"__name__", get_name, nullptr, "The method's name.", nullptr},
    {"__qualname__", get_qualname, nullptr, "The method's name behind its class's.", nullptr},
    {"cr_running", get_running, nullptr, "Whether it runs at this moment.", nullptr},
    {"cr_suspended", get_suspended, nullptr, "Whether it waits.", nullptr},
    {"cr_state", get_state, nullptr, "What inspect.getcoroutinestate() says of it.", nullptr},
    {"cr_code", get_none, nullptr, "None: there is no Python code.", nullptr},
    {"cr_frame", get_none, nullptr, "None: there is no Python frame.", nullptr},
    {"cr_origin", get_none, nullptr, "None: origins are tracked in debug mode only.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMemberDef operation_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SockOperationObject, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot operation_slots[] = {
    {Py_tp_doc, const_cast<char*>("A coroutine of one of the loop's sock_*() methods.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(operation_dealloc)},
    {Py_tp_finalize, reinterpret_cast<void*>(operation_finalize)},
    {Py_tp_traverse, reinterpret_cast<void*>(operation_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(operation_clear)},
    {Py_tp_repr, reinterpret_cast<void*>(operation_repr)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(operation_next)},
    {Py_am_await, reinterpret_cast<void*>(operation_await)},
    {Py_am_send, reinterpret_cast<void*>(operation_am_send)},
    {Py_tp_methods, operation_methods},
    {Py_tp_getset, operation_getset},
    {Py_tp_members, operation_members},
    {0, nullptr},
};

PyType_Spec operation_spec = {
    "cpploop._native.SockOperation",
    sizeof(SockOperationObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    operation_slots,
};

}  // namespace

PyObject* new_sock_operation(Loop& loop, SockCall call, PyObject* const* arguments,
                             Py_ssize_t count) {
  PyTypeObject* type = loop.state().sock_operation_type;
  auto* object = PyObject_GC_New(SockOperationObject, type);
  if (object == nullptr) {
    return nullptr;
  }
  auto* self = reinterpret_cast<PyObject*>(object);
  object->weakrefs = nullptr;
#if PY_VERSION_HEX >= 0x030E0000
  std::fill(std::begin(object->no_frame), std::end(object->no_frame), nullptr);
#endif
  new (object->storage) SockOperation(self, loop, call, arguments, count);
  PyObject_GC_Track(self);
  return self;
}

bool add_sock_operation_type(PyObject* module, ModuleState& state) {
  state.sock_operation_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &operation_spec, nullptr));
  return state.sock_operation_type != nullptr &&
         PyModule_AddType(module, state.sock_operation_type) == 0;
}

}  // namespace cpploop

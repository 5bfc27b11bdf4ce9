#include "binding/stream_feed.h"

#include <algorithm>
#include <cstring>

#include "binding/py/weakref.h"

namespace cpploop {
namespace {

using py::Ref;

[[nodiscard]] PyTypeObject* as_type(PyObject* object) noexcept {
  return reinterpret_cast<PyTypeObject*>(object);
}

// Whether an object's method is asyncio's, neither its own nor replaced in the class. It is asked
// for the method and not for its __dict__: an instance that has been asked for that keeps its
// attributes in a dictionary from then on, and every access to one of them is slower.
[[nodiscard]] bool method_is(PyObject* object, PyObject* name, PyObject* original) {
  Ref method = Ref::steal(PyObject_GetAttr(object, name));
  if (!method) {
    PyErr_Clear();
    return false;
  }
  return PyMethod_Check(method.get()) && PyMethod_GET_SELF(method.get()) == object &&
         PyMethod_GET_FUNCTION(method.get()) == original;
}

// How many bytes make a reader pause its transport: twice its limit. Looked at once, because only
// the size of reads follows from it.
[[nodiscard]] std::size_t pausing_size(const ModuleState& state, PyObject* reader) {
  Ref limit = Ref::steal(PyObject_GetAttr(reader, state.str__limit));
  const Py_ssize_t bytes =
      limit && PyLong_CheckExact(limit.get()) ? PyLong_AsSsize_t(limit.get()) : PY_SSIZE_T_MAX;
  if (bytes == -1 || !limit) {
    PyErr_Clear();  // More than memory has, or nothing.
    return static_cast<std::size_t>(PY_SSIZE_T_MAX);
  }
  return bytes < 0 ? 0 : static_cast<std::size_t>(bytes) * 2;
}

}  // namespace

bool StreamFeed::attach(ModuleState& state, PyObject* protocol) {
  detach();
  if (!Py_IS_TYPE(protocol, as_type(state.stream_reader_protocol_type))) {
    return false;
  }
  Ref reference = Ref::steal(PyObject_GetAttr(protocol, state.str__stream_reader_wr));
  Ref reader = reference ? py::referent(reference.get()) : Ref();
  PyErr_Clear();
  const bool plain =
      reader && Py_IS_TYPE(reader.get(), as_type(state.stream_reader_type)) &&
      method_is(protocol, state.str_data_received, state.original_data_received) &&
      method_is(reader.get(), state.str_feed_data, state.original_feed_data) &&
      method_is(reader.get(), state.str__wakeup_waiter, state.original_wakeup_waiter);
  if (!plain) {
    return false;
  }
  protocol_version_ = as_type(state.stream_reader_protocol_type)->tp_version_tag;
  reader_version_ = as_type(state.stream_reader_type)->tp_version_tag;
  // Without a version the classes cannot be watched.
  if (protocol_version_ == 0 || reader_version_ == 0) {
    return false;
  }
  protocol_ = Ref::borrow(protocol);
  read_max_ = std::max(kReadMaxLeast, pausing_size(state, reader.get()));
  return true;
}

void StreamFeed::detach() noexcept { Ref old = std::move(protocol_); }

bool StreamFeed::classes_unchanged(const ModuleState& state) const noexcept {
  return as_type(state.stream_reader_protocol_type)->tp_version_tag == protocol_version_ &&
         as_type(state.stream_reader_type)->tp_version_tag == reader_version_;
}

StreamFeed::Outcome StreamFeed::feed(ModuleState& state, const char* data, std::size_t size) {
  if (!classes_unchanged(state)) {
    detach();
    return Outcome::ordinary;
  }
  Ref reference = Ref::steal(PyObject_GetAttr(protocol_.get(), state.str__stream_reader_wr));
  if (!reference) {
    PyErr_Clear();
    return Outcome::ordinary;
  }
  Ref reader = py::referent(reference.get());
  if (!reader) {
    return Outcome::fed;  // Nobody reads any more: asyncio drops the bytes.
  }
  if (!Py_IS_TYPE(reader.get(), as_type(state.stream_reader_type))) {
    return Outcome::ordinary;
  }
  Ref ended = Ref::steal(PyObject_GetAttr(reader.get(), state.str__eof));
  Ref buffer = ended ? Ref::steal(PyObject_GetAttr(reader.get(), state.str__buffer)) : Ref();
  if (!buffer || ended.get() != Py_False || !PyByteArray_CheckExact(buffer.get())) {
    PyErr_Clear();
    return Outcome::ordinary;
  }
  const Py_ssize_t old_size = PyByteArray_GET_SIZE(buffer.get());
  if (PyByteArray_Resize(buffer.get(), old_size + static_cast<Py_ssize_t>(size)) != 0) {
    // Exported, or no memory: asyncio's own extend() says which.
    PyErr_Clear();
    return Outcome::ordinary;
  }
  std::memcpy(PyByteArray_AS_STRING(buffer.get()) + old_size, data, size);

  Ref waiter = Ref::steal(PyObject_GetAttr(reader.get(), state.str__waiter));
  if (!waiter) {
    return Outcome::failed;
  }
  if (!waiter.is_none()) {
    if (PyObject_SetAttr(reader.get(), state.str__waiter, Py_None) != 0) {
      return Outcome::failed;
    }
    Ref cancelled = Ref::steal(PyObject_CallMethodNoArgs(waiter.get(), state.str_cancelled));
    if (!cancelled) {
      return Outcome::failed;
    }
    if (cancelled.get() == Py_False) {
      Ref result =
          Ref::steal(PyObject_CallMethodOneArg(waiter.get(), state.str_set_result, Py_None));
      if (!result) {
        return Outcome::failed;
      }
    }
  }
  Ref limit = Ref::steal(PyObject_GetAttr(reader.get(), state.str__limit));
  const Py_ssize_t limit_bytes = limit ? PyLong_AsSsize_t(limit.get()) : -1;
  if (limit_bytes == -1 && PyErr_Occurred() != nullptr) {
    // A limit larger than memory never pauses.
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) {
      return Outcome::failed;
    }
    PyErr_Clear();
    return Outcome::fed;
  }
  if (PyByteArray_GET_SIZE(buffer.get()) / 2 < limit_bytes) {
    return Outcome::fed;
  }
  Ref paused = Ref::steal(
      PyObject_CallMethodObjArgs(state.support, state.str__pause_reader, reader.get(), nullptr));
  return paused ? Outcome::fed : Outcome::failed;
}

}  // namespace cpploop

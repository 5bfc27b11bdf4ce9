#pragma once

#include <cstddef>

#include "binding/module_state.h"
#include "binding/py/buffer.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// The bytes of an object that a program hands to write(), for the length of that call: no export of
// the object outlives it.
class OutgoingBytes {
 public:
  // What write() takes: bytes, bytearray, memoryview and their subtypes.
  [[nodiscard]] static bool accepts(PyObject* object) noexcept {
    return PyBytes_Check(object) || PyByteArray_Check(object) || PyMemoryView_Check(object);
  }

  // The object outlives this one. False with the Python error set.
  [[nodiscard]] bool take(ModuleState& state, PyObject* object) {
    if (!PyBytes_CheckExact(object)) {
      return take_other(state, object);
    }
    keep(object);
    return true;
  }

  [[nodiscard]] const char* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // What a queue keeps: bytes behind `offset` of an immutable object.
  struct Rest {
    py::Ref bytes;  // Null with the Python error set when memory ran out.
    std::size_t offset;
  };
  // What is left when `sent` bytes are out. A copy only of what its owner may still change.
  [[nodiscard]] Rest rest(std::size_t sent);

 private:
  void keep(PyObject* bytes) noexcept {
    exact_ = bytes;
    data_ = PyBytes_AS_STRING(bytes);
    size_ = static_cast<std::size_t>(PyBytes_GET_SIZE(bytes));
  }
  [[nodiscard]] bool take_other(ModuleState& state, PyObject* object);

  PyObject* exact_ = nullptr;  // Borrowed: plain bytes, kept as they are.
  py::BufferView view_;
  py::Ref copied_;
  const char* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace cpploop

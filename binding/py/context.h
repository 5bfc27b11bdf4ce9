#pragma once

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop::py {

// Runs what follows inside a contextvars.Context, as Context.run() does. An error in flight
// survives the exit.
class InContext {
 public:
  explicit InContext(PyObject* context) noexcept
      : context_(context), entered_(context != nullptr && PyContext_Enter(context) == 0) {
    if (entered_) {
      Py_INCREF(context_);
    }
  }
  ~InContext() {
    if (entered_) {
      before_release();
      if (PyContext_Exit(context_) != 0) {
        PyErr_WriteUnraisable(context_);
      }
      Py_DECREF(context_);
    }
  }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;

  // False with the Python error set, or with no context at all.
  [[nodiscard]] bool entered() const noexcept { return entered_; }

 private:
  PyObject* context_;
  bool entered_;
};

}  // namespace cpploop::py

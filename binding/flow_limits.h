#pragma once

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// The watermarks of a transport as the program gave them: any numbers, which the engine gets as
// whole ones.
class FlowLimits {
 public:
  struct Bytes {
    Py_ssize_t high = 0;
    Py_ssize_t low = 0;
  };

  // set_write_buffer_limits(high, low), None where nothing was given. False with the Python error
  // set.
  [[nodiscard]] bool set(PyObject* high_given, PyObject* low_given, Bytes& bytes);
  // The tuple (low, high), by default of these numbers.
  [[nodiscard]] PyObject* get(const Bytes& defaults) const;

 private:
  py::Ref high_;  // Null for the defaults.
  py::Ref low_;
};

}  // namespace cpploop

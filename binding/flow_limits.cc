#include "binding/flow_limits.h"

#include <utility>

namespace cpploop {
namespace {

using py::Ref;

constexpr long kDefaultHigh = 64 * 1024;

[[nodiscard]] Py_ssize_t bytes_of(PyObject* number) {
  Ref integer = Ref::steal(PyNumber_Long(number));
  // Null as the exception: what is too large is clamped.
  return integer ? PyNumber_AsSsize_t(integer.get(), nullptr) : -1;
}

}  // namespace

// In Python's own arithmetic, so that odd numbers meet the errors asyncio gives them.
bool FlowLimits::set(PyObject* high_given, PyObject* low_given, Bytes& bytes) {
  Ref four = Ref::steal(PyLong_FromLong(4));
  Ref zero = Ref::steal(PyLong_FromLong(0));
  if (!four || !zero) {
    return false;
  }
  Ref high;
  if (high_given != Py_None) {
    high = Ref::borrow(high_given);
  } else if (low_given == Py_None) {
    high = Ref::steal(PyLong_FromLong(kDefaultHigh));
  } else {
    high = Ref::steal(PyNumber_Multiply(four.get(), low_given));
  }
  if (!high) {
    return false;
  }
  Ref low = low_given != Py_None ? Ref::borrow(low_given)
                                 : Ref::steal(PyNumber_FloorDivide(high.get(), four.get()));
  if (!low) {
    return false;
  }
  const int ordered = PyObject_RichCompareBool(high.get(), low.get(), Py_GE);
  const int positive = ordered == 1 ? PyObject_RichCompareBool(low.get(), zero.get(), Py_GE) : 0;
  if (ordered < 0 || positive < 0) {
    return false;
  }
  if (positive == 0) {
    PyErr_Format(PyExc_ValueError, "high (%R) must be >= low (%R) must be >= 0", high.get(),
                 low.get());
    return false;
  }
  bytes.high = bytes_of(high.get());
  bytes.low = bytes_of(low.get());
  if (PyErr_Occurred() != nullptr) {
    return false;
  }
  high_ = std::move(high);
  low_ = std::move(low);
  return true;
}

PyObject* FlowLimits::get(const Bytes& defaults) const {
  return high_ ? PyTuple_Pack(2, low_.get(), high_.get())
               : Py_BuildValue("(nn)", defaults.low, defaults.high);
}

}  // namespace cpploop

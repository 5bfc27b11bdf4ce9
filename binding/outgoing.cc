#include "binding/outgoing.h"

#include <utility>

namespace cpploop {

using py::Ref;

bool OutgoingBytes::take_other(ModuleState& state, PyObject* object) {
  if (view_.acquire(object, PyBUF_SIMPLE)) {
    data_ = static_cast<const char*>(view_.data());
    size_ = view_.size();
    return true;
  }
  // A view with gaps: its bytes, in order.
  PyErr_Clear();
  Ref plain = Ref::steal(PyMemoryView_FromObject(object));
  copied_ = plain ? Ref::steal(PyObject_CallMethodNoArgs(plain.get(), state.str_tobytes)) : Ref();
  if (!copied_) {
    return false;
  }
  keep(copied_.get());
  return true;
}

OutgoingBytes::Rest OutgoingBytes::rest(std::size_t sent) {
  if (exact_ != nullptr) {
    return {Ref::borrow(exact_), sent};
  }
  Ref copy =
      Ref::steal(PyBytes_FromStringAndSize(data_ + sent, static_cast<Py_ssize_t>(size_ - sent)));
  view_.release();
  return {std::move(copy), 0};
}

}  // namespace cpploop

#include "binding/shared_context.h"

#include <cstddef>
#include <utility>

namespace cpploop {
namespace {

using py::Ref;

// How every CPython to date begins a context: which one was left for it, and its variables, a map
// that never changes, so that contexts with the same map have the same variables.
struct ContextHead {
  PyObject_HEAD PyObject* previous;
  PyObject* variables;
};

[[nodiscard]] PyObject* variables_of(PyObject* context) noexcept {
  return reinterpret_cast<ContextHead*>(context)->variables;
}

// Borrowed; null in a thread that never needed one.
[[nodiscard]] PyObject* current_context() noexcept { return PyThreadState_Get()->context; }

// Whether setting a variable in a context shows there, and there only.
[[nodiscard]] bool shows_a_change(PyObject* context, PyObject* copy) {
  PyObject* const before = variables_of(context);
  if (before == nullptr || variables_of(copy) != before) {
    return false;
  }
  const Ref variable = Ref::steal(PyContextVar_New("cpploop", nullptr));
  if (!variable || PyContext_Enter(context) != 0) {
    return false;
  }
  const bool is_current = current_context() == context;
  const Ref token = Ref::steal(PyContextVar_Set(variable.get(), Py_True));
  const bool left = PyContext_Exit(context) == 0;
  const Ref later = Ref::steal(PyContext_Copy(context));
  return is_current && token && left && later && variables_of(copy) == before &&
         variables_of(context) != before && variables_of(later.get()) == variables_of(context);
}

}  // namespace

bool can_share_contexts() {
  if (py::kFreeThreaded ||
      PyContext_Type.tp_basicsize < static_cast<Py_ssize_t>(sizeof(ContextHead))) {
    return false;
  }
  const Ref context = Ref::steal(PyContext_New());
  const Ref copy = context ? Ref::steal(PyContext_Copy(context.get())) : Ref();
  const bool can = copy && shows_a_change(context.get(), copy.get());
  PyErr_Clear();
  return can;
}

PyObject* SharedContexts::like_current() {
  PyObject* current = current_context();
  if (shared_ && current != nullptr && variables_of(current) == variables_of(shared_.get())) {
    return py::new_ref(shared_.get());
  }
  Ref made = Ref::steal(PyContext_CopyCurrent());
  if (made) {
    clear();
    shared_ = made.dup();
  }
  return made.release();
}

bool SharedContexts::has_last_user(PyObject* shared) const noexcept {
  constexpr Py_ssize_t kHandleAndCaller = 2;
  return shared != shared_.get() && Py_REFCNT(shared) == kHandleAndCaller;
}

PyObject* SharedContexts::copy_to_run(PyObject* shared) {
  return spare_ && shared == shared_.get() ? spare_.release() : PyContext_Copy(shared);
}

void SharedContexts::ran(PyObject* shared, Ref context) noexcept {
  const bool as_it_was = Py_REFCNT(context.get()) == 1 && shared == shared_.get() && !spare_ &&
                         variables_of(context.get()) == variables_of(shared_.get());
  if (as_it_was) {
    spare_ = std::move(context);
  }
}

void SharedContexts::release(PyObject* shared) noexcept {
  const Ref released = Ref::steal(shared);
  constexpr Py_ssize_t kOursAndThis = 2;
  if (shared == shared_.get() && Py_REFCNT(shared) == kOursAndThis) {
    clear();
  }
}

int SharedContexts::traverse(visitproc visit, void* arg) {
  Py_VISIT(shared_.get());
  Py_VISIT(spare_.get());
  return 0;
}

void SharedContexts::clear() noexcept {
  // Moved out first: their ends may run code that comes back here.
  const Ref shared = std::move(shared_);
  const Ref spare = std::move(spare_);
}

}  // namespace cpploop

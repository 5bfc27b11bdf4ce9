#pragma once

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// Whether this Python's contexts keep their variables where we look, tried out on contexts of our
// own. False where that cannot be said; never an error. Free-threaded builds share nothing.
[[nodiscard]] bool can_share_contexts();

// The contexts of callbacks that were given none. Each runs in a copy of its own, made of the
// context in which it was scheduled; but thousands that are scheduled in the same context can keep
// one copy, which nobody enters, and make their own when they run. A callback that changed nothing
// leaves its copy for the next. Owned by the loop; with the interpreter's lock.
class SharedContexts {
 public:
  // A new reference to a context like the current one, for share() to be asked about; or null with
  // the Python error set.
  [[nodiscard]] PyObject* like_current();
  // Whether a handle that is being called, and its caller, are all who have it: then it is theirs.
  [[nodiscard]] bool has_last_user(PyObject* shared) const noexcept;
  // A callback's own copy of what like_current() gave. New reference or null.
  [[nodiscard]] PyObject* copy_to_run(PyObject* shared);
  // The callback returned, and only the caller has its context. `shared` is only compared: it may
  // be gone.
  void ran(PyObject* shared, py::Ref context) noexcept;
  // Lets go of what like_current() gave. With the last of them go the values of its variables.
  void release(PyObject* shared) noexcept;

  [[nodiscard]] int traverse(visitproc visit, void* arg);
  void clear() noexcept;

 private:
  py::Ref shared_;  // The last that was made, while anybody else has it.
  py::Ref spare_;   // A copy of it that was run in and is as it was.
};

}  // namespace cpploop

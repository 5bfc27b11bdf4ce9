#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <utility>

#include "binding/py/python.h"

namespace cpploop::py {

// Set once the process has begun to exit, and never cleared.
inline std::atomic<bool> g_process_exiting{false};

// Below Python 3.14 a daemon thread that asks for the interpreter while it finalises is ended by
// unwinding its stack, and the first thing that would run is the destructors of our frames, without
// an interpreter to run in. They call this first, and the thread stops here for good, which is what
// Python 3.14 does itself.
void park_if_thread_is_ending();
[[noreturn]] void park() noexcept;

// Runs code that may call Python where no exception may pass: a thread that is ended in there
// parks, too.
template <typename Body>
void unless_thread_ends(Body body) noexcept {
  try {
    body();
  } catch (...) {
    // The unwinding that ends a thread is no C++ exception, and there is no object of it to look
    // at.
    if (std::current_exception() == nullptr) {
      park();
    }
    std::terminate();
  }
}

inline void before_release() {
  if (g_process_exiting.load(std::memory_order_relaxed)) [[unlikely]] {
    park_if_thread_is_ending();
  }
}

// An owned reference. Move-only: a second reference to the same object is spelled dup(). Dropping
// one can run any code, so it is never done while an invariant is open.
class Ref {
 public:
  Ref() noexcept = default;
  Ref(Ref&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    // The old object goes last: its end may run code that looks at this reference.
    const Ref old(std::exchange(object_, other.release()));
    return *this;
  }
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() {
    if (object_ == nullptr) {
      return;
    }
    before_release();
#ifndef Py_GIL_DISABLED
    if (Py_REFCNT(object_) > 1) [[likely]] {
      Py_DECREF(object_);  // Somebody else has it: nothing ends here, and no code runs.
      return;
    }
#endif
    unless_thread_ends([this] { Py_DECREF(object_); });
  }

  // Takes over a reference that the caller owns (what most C API calls return).
  [[nodiscard]] static Ref steal(PyObject* object) noexcept { return Ref(object); }
  // Makes a reference of its own to a borrowed object.
  [[nodiscard]] static Ref borrow(PyObject* object) noexcept {
    Py_XINCREF(object);
    return Ref(object);
  }

  [[nodiscard]] Ref dup() const noexcept { return borrow(object_); }
  [[nodiscard]] PyObject* get() const noexcept { return object_; }
  [[nodiscard]] PyObject* release() noexcept { return std::exchange(object_, nullptr); }
  [[nodiscard]] explicit operator bool() const noexcept { return object_ != nullptr; }
  [[nodiscard]] bool is_none() const noexcept { return object_ == Py_None; }
  void reset() noexcept { const Ref old(std::exchange(object_, nullptr)); }

 private:
  explicit Ref(PyObject* object) noexcept : object_(object) {}

  PyObject* object_ = nullptr;
};

[[nodiscard]] inline PyObject* new_ref(PyObject* object) noexcept {
  Py_INCREF(object);
  return object;
}

// The name as error messages show it: type(object).__name__.
[[nodiscard]] inline const char* type_name(PyObject* object) noexcept {
  const char* full = Py_TYPE(object)->tp_name;
  const char* dot = std::strrchr(full, '.');
  return dot == nullptr ? full : dot + 1;
}

// The object, or None where there is none. New reference.
[[nodiscard]] inline PyObject* or_none(PyObject* object) noexcept {
  return new_ref(object == nullptr ? Py_None : object);
}
[[nodiscard]] inline PyObject* none() noexcept { return new_ref(Py_None); }
[[nodiscard]] inline PyObject* boolean(bool value) noexcept {
  return new_ref(value ? Py_True : Py_False);
}

// The exception in flight, taken out of the thread state; put back by restore().
class PendingError {
 public:
  PendingError() noexcept = default;

  [[nodiscard]] static PendingError take() noexcept {
    PendingError error;
#if PY_VERSION_HEX >= 0x030C0000
    error.value_ = Ref::steal(PyErr_GetRaisedException());
#else
    PyObject* type = nullptr;
    PyObject* value = nullptr;
    PyObject* traceback = nullptr;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != nullptr && value != nullptr) {
      PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    error.value_ = Ref::steal(value);
#endif
    return error;
  }

  [[nodiscard]] explicit operator bool() const noexcept { return static_cast<bool>(value_); }
  [[nodiscard]] PyObject* value() const noexcept { return value_.get(); }
  [[nodiscard]] bool matches(PyObject* type) const noexcept {
    return value_ && PyErr_GivenExceptionMatches(value_.get(), type) != 0;
  }
  // The exceptions that leave run_forever(); all others go to the exception handler.
  [[nodiscard]] bool must_leave_loop() const noexcept {
    return matches(PyExc_SystemExit) || matches(PyExc_KeyboardInterrupt);
  }

  void restore() noexcept {
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(value_.release());
#else
    PyObject* value = value_.release();
    if (value == nullptr) {
      return;
    }
    PyErr_Restore(new_ref(reinterpret_cast<PyObject*>(Py_TYPE(value))), value,
                  PyException_GetTraceback(value));
#endif
  }

 private:
  Ref value_;
};

}  // namespace cpploop::py

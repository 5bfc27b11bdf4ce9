#pragma once

#include <cerrno>
#include <exception>
#include <new>
#include <system_error>

#include "binding/py/python.h"

namespace cpploop::py {

// OSError of that number, or the subclass it has.
inline void set_os_error(int error) {
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
}

// Sets the Python error for a C++ exception that reached the C boundary.
inline void set_error_from_cpp() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::system_error& error) {
    set_os_error(error.code().value());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_SystemError, error.what());
  }
  // Not all: below Python 3.14 a thread that wants the interpreter while it finalises is ended by
  // pthread_exit(), which unwinds through here and must not be stopped.
}

// The body of every entry point that can meet a C++ exception.
template <typename Body>
PyObject* guard(Body body) {
  try {
    return body();
  } catch (...) {
    set_error_from_cpp();
    return nullptr;
  }
}

template <typename Body>
int guard_int(Body body) {
  try {
    return body();
  } catch (...) {
    set_error_from_cpp();
    return -1;
  }
}

}  // namespace cpploop::py

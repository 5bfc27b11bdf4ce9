#pragma once

// Python.h must come first in every file of the binding; including this one does it.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

// On builds with a GIL, or before these macros existed, the GIL is the critical section.
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(op) {
#define Py_END_CRITICAL_SECTION() }
#endif

namespace cpploop::py {

#ifdef Py_GIL_DISABLED
inline constexpr bool kFreeThreaded = true;
#else
inline constexpr bool kFreeThreaded = false;
#endif

}  // namespace cpploop::py

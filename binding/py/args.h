#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "binding/py/python.h"

namespace cpploop::py {

// Arguments as METH_FASTCALL | METH_KEYWORDS hands them over.
struct CallArgs {
  PyObject* const* values;
  Py_ssize_t positional;
  PyObject* keywords;  // A tuple of names, or null.

  [[nodiscard]] Py_ssize_t keyword_count() const noexcept {
    return keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  }
  [[nodiscard]] PyObject* keyword_name(Py_ssize_t i) const noexcept {
    return PyTuple_GET_ITEM(keywords, i);
  }
  [[nodiscard]] PyObject* keyword_value(Py_ssize_t i) const noexcept {
    return values[positional + i];
  }
};

// One parameter of a small native function, for parse().
struct Parameter {
  PyObject* name;     // Interned.
  PyObject** target;  // Left alone when the argument is absent.
  bool keyword_only;
};

// Binds arguments to parameters. Names are interned, so identity settles nearly every keyword.
// False, with TypeError set, for unknown, repeated or surplus arguments.
[[nodiscard]] inline bool parse(const char* function, const CallArgs& args,
                                std::span<const Parameter> parameters) noexcept {
  std::size_t accepted = 0;
  for (const Parameter& parameter : parameters) {
    accepted += parameter.keyword_only ? 0U : 1U;
  }
  if (static_cast<std::size_t>(args.positional) > accepted) {
    PyErr_Format(PyExc_TypeError, "%s() takes at most %zu positional arguments (%zd given)",
                 function, accepted, args.positional);
    return false;
  }
  for (Py_ssize_t i = 0; i < args.positional; ++i) {
    *parameters[static_cast<std::size_t>(i)].target = args.values[i];
  }
  for (Py_ssize_t i = 0; i < args.keyword_count(); ++i) {
    PyObject* name = args.keyword_name(i);
    std::size_t index = 0;
    while (index < parameters.size() && parameters[index].name != name &&
           PyUnicode_Compare(parameters[index].name, name) != 0) {
      ++index;
    }
    if (index == parameters.size()) {
      PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
      return false;
    }
    if (static_cast<Py_ssize_t>(index) < args.positional) {
      PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", function, name);
      return false;
    }
    *parameters[index].target = args.keyword_value(i);
  }
  return true;
}

// TypeError for an argument that has to be given. Null.
inline PyObject* refuse_missing(const char* function, const char* name) {
  return PyErr_Format(PyExc_TypeError, "%s() missing 1 required positional argument: '%s'",
                      function, name);
}

// The one argument of a method, by place or by name. Null with TypeError set.
[[nodiscard]] inline PyObject* only_argument(const char* function, PyObject* name,
                                             const CallArgs& args) {
  if (args.positional == 1 && args.keyword_count() == 0) [[likely]] {
    return args.values[0];
  }
  PyObject* value = nullptr;
  const Parameter parameters[] = {{name, &value, false}};
  if (parse(function, args, parameters) && value == nullptr) {
    (void)refuse_missing(function, PyUnicode_AsUTF8(name));
  }
  return PyErr_Occurred() == nullptr ? value : nullptr;
}

// A function of any of the calling conventions as method tables take it; kFast names the convention
// that CallArgs is for.
template <typename Function>
[[nodiscard]] constexpr PyCFunction as_cfunction(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline constexpr int kFast = METH_FASTCALL | METH_KEYWORDS;

}  // namespace cpploop::py

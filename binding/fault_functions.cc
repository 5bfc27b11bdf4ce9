// What tests ask of a build with CPPLOOP_FAULTS: which system calls fail, and the account of the
// descriptors.

#ifdef CPPLOOP_FAULTS

#include "binding/fault_allocations.h"
#include "binding/module_state.h"
#include "binding/py/python.h"
#include "core/os/faults.h"
#include "core/os/ledger.h"

namespace cpploop {
namespace {

namespace faults = os::faults;

// Shares of 1.
[[nodiscard]] faults::Rates rates_of(double benign, double pressure, double hard) noexcept {
  constexpr double kMillion = 1e6;
  faults::Rates rates;
  rates.per_million = {static_cast<std::uint32_t>(benign * kMillion),
                       static_cast<std::uint32_t>(pressure * kMillion),
                       static_cast<std::uint32_t>(hard * kMillion)};
  return rates;
}

PyObject* set_faults(PyObject*, PyObject* args) {
  unsigned long long seed = 0;
  double benign = 0;
  double pressure = 0;
  double hard = 0;
  if (PyArg_ParseTuple(args, "K|ddd", &seed, &benign, &pressure, &hard) == 0) {
    return nullptr;
  }
  for (const double share : {benign, pressure, hard}) {
    if (!(share >= 0 && share <= 1)) {
      PyErr_SetString(PyExc_ValueError, "the rate of a fault is between 0 and 1");
      return nullptr;
    }
  }
  faults::configure(seed, rates_of(benign, pressure, hard));
  return py::none();
}

PyObject* set_refusal(PyObject*, PyObject* args) {
  const char* name = nullptr;
  int error = 0;
  if (PyArg_ParseTuple(args, "si", &name, &error) == 0) {
    return nullptr;
  }
  if (!faults::refuse(name, error)) {
    PyErr_Format(PyExc_ValueError, "no system call of the engine is named %s", name);
    return nullptr;
  }
  return py::none();
}

PyObject* fault_figures(PyObject*, PyObject*) {
  const faults::Figures figures = faults::figures();
  return Py_BuildValue("{s:K, s:K, s:K, s:K, s:K}", "calls", figures.calls, "benign",
                       figures.injected[0], "pressure", figures.injected[1], "hard",
                       figures.injected[2], "refused", figures.refused);
}

PyObject* set_failing_allocations(PyObject*, PyObject* args) {
  unsigned long long first = 0;
  unsigned long long behind_last = 0;
  if (PyArg_ParseTuple(args, "|KK", &first, &behind_last) == 0) {
    return nullptr;
  }
  fail_allocations(first, behind_last);
  return py::none();
}

PyObject* ledger_figures(PyObject*, PyObject*) {
  const ledger::Figures figures = ledger::figures();
  return Py_BuildValue("{s:K, s:K, s:K, s:K, s:K}", "adopted", figures.adopted, "closed",
                       figures.closed, "given_away", figures.given_away, "owned", figures.owned,
                       "events_checked", figures.events_checked);
}

PyMethodDef functions[] = {
    {"_set_faults", set_faults, METH_VARARGS,
     "_set_faults(seed, benign=0, pressure=0, hard=0)\n--\n\n"
     "From here on these shares of the engine's system calls meet a fault."},
    {"_refuse_call", set_refusal, METH_VARARGS,
     "_refuse_call(name, error)\n--\n\n"
     "The system call of this name fails with the errno; 0 ends that."},
    {"_fail_allocations", set_failing_allocations, METH_VARARGS,
     "_fail_allocations(first=0, behind_last=0)\n--\n\n"
     "Of this thread's C++ allocations, counted from now, those with these numbers fail."},
    {"_fault_figures", fault_figures, METH_NOARGS,
     "_fault_figures()\n--\n\nSystem calls made so far, and the faults among them by kind."},
    {"_ledger_figures", ledger_figures, METH_NOARGS,
     "_ledger_figures()\n--\n\nThe account of the engine's descriptors."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_fault_functions(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace cpploop

#endif

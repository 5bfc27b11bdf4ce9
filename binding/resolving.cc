#include "binding/resolving.h"

#include <netinet/in.h>

#include "binding/address.h"
#include "binding/py/ref.h"
#include "binding/python_socket.h"
#include "core/os/socket_ops.h"

namespace cpploop {
namespace {

using py::Ref;

// Whether the namespace has this very object under the name. Leaves no error set.
[[nodiscard]] bool holds(PyObject* dict, PyObject* name, PyObject* original) noexcept {
  PyObject* found = PyDict_GetItemWithError(dict, name);
  if (found == nullptr) {
    PyErr_Clear();
  }
  return found == original;
}

// Whether `loop.name` is `original` bound to the loop. Leaves no error set.
[[nodiscard]] bool is_bound(PyObject* loop, PyObject* name, PyObject* original) {
  Ref method = Ref::steal(PyObject_GetAttr(loop, name));
  if (!method) {
    PyErr_Clear();
    return false;
  }
  return PyMethod_Check(method.get()) && PyMethod_GET_SELF(method.get()) == loop &&
         PyMethod_GET_FUNCTION(method.get()) == original;
}

// Nothing is replaced: not on the loop or its class, and not in asyncio's module, where tests do
// it.
[[nodiscard]] bool resolves_as_asyncio(Loop& loop) {
  const ModuleState& state = loop.state();
  return !loop.overrides().connecting &&
         holds(state.base_events_dict, state.str__ipaddr_info, state.original_ipaddr_info) &&
         holds(state.base_events_dict, state.str_socket, state.socket_module) &&
         holds(PyModule_GetDict(state.socket_module), state.str_inet_pton,
               state.original_inet_pton);
}

// Whether it is a function of asyncio.base_events' own code, and nobody's in its place.
[[nodiscard]] bool is_asyncios(PyObject* function, const ModuleState& state) noexcept {
  return function != nullptr && PyFunction_Check(function) &&
         PyFunction_GET_GLOBALS(function) == state.base_events_dict;
}

// What was replaced before we were imported counts as replaced for good: nothing is this object.
void keep_if(bool original, PyObject*& slot, const ModuleState& state) noexcept {
  if (!original) {
    Py_XSETREF(slot, Py_NewRef(state.base_events_dict));
  }
}

// asyncio's knows streams and datagrams of TCP and UDP.
[[nodiscard]] bool is_internet_kind(ModuleState& state, PyObject* sock) noexcept {
  const int type = socket_kind(state, sock);
  const int proto = socket_proto(state, sock);
  return (type == SOCK_STREAM || type == SOCK_DGRAM) &&
         (proto == 0 || proto == IPPROTO_TCP || proto == IPPROTO_UDP);
}

}  // namespace

bool import_resolving(ModuleState& state) {
  Ref base_events = Ref::steal(PyImport_ImportModule("asyncio.base_events"));
  state.socket_module = PyImport_ImportModule("socket");
  Ref c_socket = Ref::steal(PyImport_ImportModule("_socket"));
  if (!base_events || !c_socket || state.socket_module == nullptr) {
    return false;
  }
  if (!PyModule_Check(state.socket_module)) {
    PyErr_SetString(PyExc_ImportError, "cpploop needs Python's own socket module");
    return false;
  }
  state.base_events_dict = PyObject_GetAttrString(base_events.get(), "__dict__");
  state.original_ipaddr_info = PyObject_GetAttr(base_events.get(), state.str__ipaddr_info);
  state.original_inet_pton = PyObject_GetAttr(state.socket_module, state.str_inet_pton);
  state.original_ensure_resolved =
      PyObject_GetAttr(state.selector_loop_type, state.str__ensure_resolved);
  state.original_connect_sock = PyObject_GetAttr(state.selector_loop_type, state.str__connect_sock);
  Ref inet_pton = Ref::steal(PyObject_GetAttr(c_socket.get(), state.str_inet_pton));
  if (state.base_events_dict == nullptr || state.original_ipaddr_info == nullptr ||
      state.original_inet_pton == nullptr || state.original_ensure_resolved == nullptr ||
      state.original_connect_sock == nullptr || !inet_pton) {
    return false;
  }
  keep_if(state.original_inet_pton == inet_pton.get(), state.original_inet_pton, state);
  for (PyObject** function : {&state.original_ipaddr_info, &state.original_ensure_resolved,
                              &state.original_connect_sock}) {
    keep_if(is_asyncios(*function, state), *function, state);
  }
  return true;
}

bool replaces_resolving(PyObject* loop, ModuleState& state) {
  return !is_bound(loop, state.str__ensure_resolved, state.original_ensure_resolved) ||
         !is_bound(loop, state.str__connect_sock, state.original_connect_sock);
}

PyObject* literal_destination(Loop& loop, PyObject* host, PyObject* port) {
  // Making the coroutine is any thread's to do; what is replaced, the loop's thread's to find out.
  const bool may_look = !py::kFreeThreaded || !loop.is_elsewhere();
  if (!may_look || loop.debug() || !PyUnicode_CheckExact(host) || !PyLong_CheckExact(port) ||
      !resolves_as_asyncio(loop)) {
    return py::none();
  }
  os::SocketAddress unused;
  Ref two = Ref::steal(PyTuple_Pack(2, host, port));
  if (!two || literal_address(two.get(), AF_INET, unused)) {
    return two.release();
  }
  const bool is_v6 = holds(loop.state().base_events_dict, loop.state().str__HAS_IPv6, Py_True) &&
                     literal_address(two.get(), AF_INET6, unused);
  return is_v6 ? Py_BuildValue("(OOii)", host, port, 0, 0) : py::none();
}

bool is_resolved(Loop& loop, PyObject* sock, PyObject* address) {
  ModuleState& state = loop.state();
  const int family = socket_family(state, sock);
  // Of an IPv6 address asyncio makes four parts, and so must we be given four.
  const Py_ssize_t parts = family == AF_INET6 ? 4 : 2;
  os::SocketAddress unused;
  return PyTuple_CheckExact(address) && PyTuple_GET_SIZE(address) == parts &&
         literal_address(address, family, unused) &&
         (family == AF_INET || holds(state.base_events_dict, state.str__HAS_IPv6, Py_True)) &&
         is_internet_kind(state, sock) && resolves_as_asyncio(loop);
}

}  // namespace cpploop

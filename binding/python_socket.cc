#include "binding/python_socket.h"

#include <sys/socket.h>

#include <atomic>
#include <climits>

#include "binding/py/ref.h"
#include "core/os/platform.h"

namespace cpploop {
namespace {

using py::Ref;

// The names whose values a plain socket shares with the socket module's class.
[[nodiscard]] PyObject* name_of(const ModuleState& state, SocketMember member) noexcept {
  switch (member) {
#define CPPLOOP_NAME_OF(name) \
  case SocketMember::name:    \
    return state.str_##name;
    CPPLOOP_SOCKET_MEMBERS(CPPLOOP_NAME_OF)
#undef CPPLOOP_NAME_OF
    case SocketMember::count:
      break;
  }
  return nullptr;
}

// Whether every member that `type` offers is the one that was there at import.
[[nodiscard]] bool has_original_members(const ModuleState& state, PyTypeObject* type) {
  for (int i = 0; i < kSocketMemberCount; ++i) {
    Ref found = Ref::steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(type),
                                            name_of(state, static_cast<SocketMember>(i))));
    if (!found) {
      PyErr_Clear();
      return false;
    }
    if (found.get() != state.socket_members[i]) {
      return false;
    }
  }
  return true;
}

// Whether `value`, an attribute of `sock`, is `original` bound to it.
[[nodiscard]] bool is_bound_original(PyObject* value, PyObject* sock, PyObject* original) {
  if (Py_TYPE(original) == &PyMethodDescr_Type) {
    return PyCFunction_Check(value) && PyCFunction_GET_SELF(value) == sock &&
           reinterpret_cast<PyCFunctionObject*>(value)->m_ml ==
               reinterpret_cast<PyMethodDescrObject*>(original)->d_method;
  }
  if (PyFunction_Check(original)) {
    return PyMethod_Check(value) && PyMethod_GET_SELF(value) == sock &&
           PyMethod_GET_FUNCTION(value) == original;
  }
  return false;
}

// Children of socket.socket have a __dict__, where a method may be replaced for one socket alone.
[[nodiscard]] bool instance_replaces_nothing(const ModuleState& state, PyObject* sock) {
  for (int i = 0; i < kSocketMemberCount; ++i) {
    const auto member = static_cast<SocketMember>(i);
    if (member == SocketMember::family || member == SocketMember::type) {
      continue;  // Properties: an instance cannot replace them.
    }
    if (member == SocketMember::proto) {
      continue;  // So is this one, the C class's own.
    }
    Ref value = Ref::steal(PyObject_GetAttr(sock, name_of(state, member)));
    if (!value) {
      PyErr_Clear();
      return false;
    }
    if (!is_bound_original(value.get(), sock, state.socket_members[i])) {
      return false;
    }
  }
  return true;
}

[[nodiscard]] PyObject* member_of(const ModuleState& state, SocketMember member) noexcept {
  return state.socket_members[static_cast<int>(member)];
}

// What a member of the C class (`_socket.socket.family`, a plain field) holds for `sock`.
[[nodiscard]] Ref field_of(PyObject* descriptor, PyObject* sock) {
  return Ref::steal(
      Py_TYPE(descriptor)
          ->tp_descr_get(descriptor, sock, reinterpret_cast<PyObject*>(Py_TYPE(sock))));
}

// The same as a number; -1 if it is none.
[[nodiscard]] int number_in(PyObject* descriptor, PyObject* sock) noexcept {
  Ref value = field_of(descriptor, sock);
  const long number = value ? PyLong_AsLong(value.get()) : -1;
  if (number < 0 || number > INT_MAX) {
    PyErr_Clear();
    return -1;
  }
  return static_cast<int>(number);
}

// CPython's socket objects begin with their number.
[[nodiscard]] int* number_inside(PyObject* sock) noexcept {
  return reinterpret_cast<int*>(reinterpret_cast<char*>(sock) + sizeof(PyObject));
}

// Asked of a socket that was never opened; one that is open is asked by shared_number().
[[nodiscard]] bool reads_numbers(PyTypeObject* type) {
  if (type->tp_basicsize < static_cast<Py_ssize_t>(sizeof(PyObject) + sizeof(int))) {
    return false;
  }
  Ref unopened = Ref::steal(PyObject_CallMethod(reinterpret_cast<PyObject*>(type), "__new__", "O",
                                                reinterpret_cast<PyObject*>(type)));
  if (!unopened) {
    PyErr_Clear();
    return false;
  }
  return *number_inside(unopened.get()) == -1;
}

}  // namespace

bool import_sockets(ModuleState& state) {
  Ref module = Ref::steal(PyImport_ImportModule("socket"));
  Ref native_module = module ? Ref::steal(PyImport_ImportModule("_socket")) : Ref();
  Ref type = native_module ? Ref::steal(PyObject_GetAttr(module.get(), state.str_socket)) : Ref();
  Ref native_type =
      type ? Ref::steal(PyObject_GetAttr(native_module.get(), state.str_socket)) : Ref();
  if (!native_type || !PyType_Check(type.get())) {
    return false;
  }
  for (int i = 0; i < kSocketMemberCount; ++i) {
    state.socket_members[i] =
        PyObject_GetAttr(type.get(), name_of(state, static_cast<SocketMember>(i)));
    if (state.socket_members[i] == nullptr) {
      return false;
    }
  }
  state.socket_family_field = PyObject_GetAttr(native_type.get(), state.str_family);
  state.socket_type_field = PyObject_GetAttr(native_type.get(), state.str_type);
  state.socket_type = reinterpret_cast<PyTypeObject*>(type.release());
  state.reads_socket_numbers = reads_numbers(state.socket_type);
  if (state.socket_family_field == nullptr || state.socket_type_field == nullptr) {
    return false;
  }
  for (PyObject* field : {state.socket_family_field, state.socket_type_field}) {
    if (Py_TYPE(field)->tp_descr_get == nullptr) {
      PyErr_SetString(PyExc_ImportError, "cpploop does not know this Python's socket.socket");
      return false;
    }
  }
  return true;
}

bool is_plain_socket(ModuleState& state, PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  if (type == state.socket_type) [[likely]] {
    // Its instances have no __dict__, so the class decides; it gets another version when changed.
    const std::atomic_ref known_version(state.socket_type_version);
    if (type->tp_version_tag != 0 &&
        type->tp_version_tag == known_version.load(std::memory_order_relaxed)) [[likely]] {
      return true;
    }
    const bool plain = has_original_members(state, type);
    known_version.store(plain ? type->tp_version_tag : 0, std::memory_order_relaxed);
    return plain;
  }
  return PyType_IsSubtype(type, state.socket_type) != 0 &&
         type->tp_getattro == PyObject_GenericGetAttr && has_original_members(state, type) &&
         instance_replaces_nothing(state, object);
}

int socket_descriptor(ModuleState& state, PyObject* sock) noexcept {
  Ref number =
      Ref::steal(PyObject_Vectorcall(member_of(state, SocketMember::fileno), &sock, 1, nullptr));
  const long fd = number ? PyLong_AsLong(number.get()) : -1;
  if (fd < 0 || fd > INT_MAX) {
    PyErr_Clear();
    return -1;
  }
  return static_cast<int>(fd);
}

bool has_descriptor(ModuleState& state, PyObject* sock, int fd) noexcept {
  // What is not a socket is a test's stand-in, which cannot be asked natively.
  return PyObject_TypeCheck(sock, state.socket_type) == 0 || socket_descriptor(state, sock) == fd;
}

int* shared_number(ModuleState& state, PyObject* sock, int fd) noexcept {
  if (sock == nullptr || !state.reads_socket_numbers ||
      PyObject_TypeCheck(sock, state.socket_type) == 0) {
    return nullptr;
  }
  int* number = number_inside(sock);
  return *number == fd ? number : nullptr;
}

bool is_non_blocking(ModuleState& state, PyObject* sock) noexcept {
  Ref blocking = Ref::steal(
      PyObject_Vectorcall(member_of(state, SocketMember::getblocking), &sock, 1, nullptr));
  if (!blocking) {
    PyErr_Clear();
    return false;
  }
  return blocking.get() == Py_False;
}

int socket_family(ModuleState& state, PyObject* sock) noexcept {
  return number_in(state.socket_family_field, sock);
}

int socket_kind(ModuleState& state, PyObject* sock) noexcept {
  return number_in(state.socket_type_field, sock);
}

int socket_proto(ModuleState& state, PyObject* sock) noexcept {
  return number_in(member_of(state, SocketMember::proto), sock);
}

namespace {

// With this flag the object knows that its descriptor does not block, which it does not ask.
#if CPPLOOP_HAVE_SOCK_NONBLOCK
constexpr long kNonBlocking = SOCK_NONBLOCK;
[[nodiscard]] bool know_as_non_blocking(PyObject* /*sock*/) { return true; }
#else
constexpr long kNonBlocking = 0;
[[nodiscard]] bool know_as_non_blocking(PyObject* sock) {
  const Ref told = Ref::steal(PyObject_CallMethod(sock, "setblocking", "O", Py_False));
  return static_cast<bool>(told);
}
#endif

}  // namespace

PyObject* accepted_socket(ModuleState& state, PyObject* listener, UniqueFd fd) {
  Ref family = field_of(state.socket_family_field, listener);
  Ref kind = family ? field_of(state.socket_type_field, listener) : Ref();
  Ref proto = kind ? Ref::steal(PyObject_GetAttr(listener, state.str_proto)) : Ref();
  if (!proto) {
    return nullptr;
  }
  const long kind_number = PyLong_AsLong(kind.get());
  Ref flagged = Ref::steal(PyLong_FromLong(kind_number | kNonBlocking));
  Ref number = Ref::steal(PyLong_FromLong(fd.get()));
  if (!flagged || !number) {
    return nullptr;
  }
  // Given up before: a KeyboardInterrupt behind the moment in which the object took it closes it.
  (void)fd.release();
  PyObject* arguments[] = {family.get(), flagged.get(), proto.get(), number.get()};
  Ref sock = Ref::steal(
      PyObject_Vectorcall(reinterpret_cast<PyObject*>(state.socket_type), arguments, 4, nullptr));
  if (!sock) {
    return nullptr;
  }
  return know_as_non_blocking(sock.get()) ? sock.release() : nullptr;
}

}  // namespace cpploop

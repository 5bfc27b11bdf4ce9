// The Python types _native.TlsProtocolBase and _native.TlsTransportBase: what is native of the
// edge's SSLProtocol and of its transport. Everything else of both is the running Python's
// asyncio.sslproto.

#include <array>
#include <iterator>
#include <mutex>
#include <new>

#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/stream_transport.h"
#include "binding/tls/openssl.h"
#include "binding/tls/tls_protocol.h"

namespace cpploop {
namespace {

using py::as_cfunction;
using py::kFast;
using py::Ref;

// ---- the protocol ----

template <typename Body>
[[nodiscard]] PyObject* with_protocol(PyObject* self, Body body) {
  return py::guard([&]() -> PyObject* {
    TlsProtocol& protocol = tls_protocol_of(self);
    return protocol.usable_loop() == nullptr ? nullptr : body(protocol);
  });
}

// A method that returns None.
template <bool (TlsProtocol::*method)()>
PyObject* protocol_call(PyObject* self, PyObject*) {
  return with_protocol(self, [](TlsProtocol& p) { return (p.*method)() ? py::none() : nullptr; });
}
// A method that returns a size.
template <Py_ssize_t (TlsProtocol::*method)()>
PyObject* protocol_size(PyObject* self, PyObject*) {
  return with_protocol(self, [](TlsProtocol& p) -> PyObject* {
    const Py_ssize_t size = (p.*method)();
    return size < 0 ? nullptr : PyLong_FromSsize_t(size);
  });
}

// Any size but one that is no number. False with the Python error set.
[[nodiscard]] bool size_from(PyObject* number, Py_ssize_t& size) {
  size = PyNumber_AsSsize_t(number, nullptr);  // What is too large is clamped.
  return size != -1 || PyErr_Occurred() == nullptr;
}

PyObject* protocol_get_buffer(PyObject* self, PyObject* hint) {
  return with_protocol(self, [&](TlsProtocol& p) -> PyObject* {
    Py_ssize_t size = 0;
    return size_from(hint, size) ? p.get_buffer() : nullptr;
  });
}
PyObject* protocol_buffer_updated(PyObject* self, PyObject* count) {
  return with_protocol(self, [&](TlsProtocol& p) -> PyObject* {
    Py_ssize_t size = 0;
    return size_from(count, size) && p.buffer_updated(size) ? py::none() : nullptr;
  });
}
PyObject* protocol_open_session(PyObject* self, PyObject* direct) {
  return with_protocol(self, [&](TlsProtocol& p) -> PyObject* {
    const int opened = p.open_session(direct == Py_True);
    return opened < 0 ? nullptr : py::boolean(opened != 0);
  });
}

PyMethodDef protocol_methods[] = {
    {"get_buffer", protocol_get_buffer, METH_O,
     "get_buffer($self, n, /)\n--\n\n"
     "Memory for ciphertext (asyncio.BufferedProtocol.get_buffer); given up by buffer_updated()."},
    {"buffer_updated", protocol_buffer_updated, METH_O,
     "buffer_updated($self, nbytes, /)\n--\n\n"
     "Take the ciphertext that was read (asyncio.BufferedProtocol.buffer_updated)."},
    {"_do_read", protocol_call<&TlsProtocol::do_read>, METH_NOARGS,
     "_do_read($self, /)\n--\n\nDecrypt what has come and hand it to the protocol."},
    {"_do_write", protocol_call<&TlsProtocol::do_write>, METH_NOARGS,
     "_do_write($self, /)\n--\n\nEncrypt and send what waits, as far as the transport takes it."},
    {"_process_outgoing", protocol_call<&TlsProtocol::process_outgoing>, METH_NOARGS,
     "_process_outgoing($self, /)\n--\n\nSend what OpenSSL has made."},
    {"_encrypt_backlog", protocol_call<&TlsProtocol::encrypt_backlog>, METH_NOARGS,
     "_encrypt_backlog($self, /)\n--\n\nEncrypt all that waits, before close_notify is."},
    {"_get_write_buffer_size", protocol_size<&TlsProtocol::write_buffer_size>, METH_NOARGS,
     "_get_write_buffer_size($self, /)\n--\n\nBytes that wait for the transport."},
    {"_get_read_buffer_size", protocol_size<&TlsProtocol::read_buffer_size>, METH_NOARGS,
     "_get_read_buffer_size($self, /)\n--\n\nCiphertext that waits to be decrypted."},
    {"_open_session", protocol_open_session, METH_O,
     "_open_session($self, direct, /)\n--\n\n"
     "Begin to use _sslobj, by its methods or directly; whether it is directly."},
    {nullptr, nullptr, 0, nullptr},
};

// An attribute's place among the slots or the flags travels in the closure.
[[nodiscard]] void* closure_of(std::uintptr_t index) { return reinterpret_cast<void*>(index); }
template <typename Index>
[[nodiscard]] Index index_of(void* closure) noexcept {
  return static_cast<Index>(reinterpret_cast<std::uintptr_t>(closure));
}

constexpr std::array<const char*, TlsProtocol::kSlotCount> kSlotNames = {
    "_loop",
    "_state",
    "_write_backlog",
    "_transport",
    "_sslobj",
    "_incoming",
    "_outgoing",
    "_app_protocol",
    "_app_transport",
    "_app_protocol_get_buffer",
    "_app_protocol_buffer_updated",
    "_outgoing_high_water",
    "_outgoing_low_water",
    "_incoming_high_water",
    "_incoming_low_water",
};
constexpr std::array<const char*, TlsProtocol::kFlagCount> kFlagNames = {
    "_ssl_writing_paused", "_ssl_reading_paused",     "_app_writing_paused",
    "_app_reading_paused", "_app_protocol_is_buffer",
};

PyObject* get_slot(PyObject* self, void* closure) {
  const auto slot = index_of<TlsProtocol::Slot>(closure);
  PyObject* value = nullptr;
  // asyncio's getters may be called in any thread, and the loop's may exchange the slot meanwhile.
  Py_BEGIN_CRITICAL_SECTION(self);
  value = tls_protocol_of(self).shown_slot(slot);
  Py_XINCREF(value);
  Py_END_CRITICAL_SECTION();
  if (value == nullptr) {
    PyErr_SetString(PyExc_AttributeError, kSlotNames[slot]);
  }
  return value;
}
int set_slot(PyObject* self, PyObject* value, void* closure) {
  int result = 0;
  Py_BEGIN_CRITICAL_SECTION(self);
  result = py::guard_int([&] {
    return tls_protocol_of(self).set_slot(index_of<TlsProtocol::Slot>(closure), value) ? 0 : -1;
  });
  Py_END_CRITICAL_SECTION();
  return result;
}
PyObject* get_flag(PyObject* self, void* closure) {
  return py::boolean(tls_protocol_of(self).flag(index_of<TlsProtocol::Flag>(closure)));
}
int set_flag(PyObject* self, PyObject* value, void* closure) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth >= 0) {
    tls_protocol_of(self).set_flag(index_of<TlsProtocol::Flag>(closure), truth != 0);
  }
  return truth < 0 ? -1 : 0;
}
PyObject* get_backlog_bytes(PyObject* self, void*) {
  return PyLong_FromSsize_t(tls_protocol_of(self).backlog_bytes());
}
int set_backlog_bytes(PyObject* self, PyObject* value, void*) {
  Py_ssize_t size = 0;
  if (value != nullptr && !size_from(value, size)) {
    return -1;
  }
  tls_protocol_of(self).set_backlog_bytes(size);
  return 0;
}

// Filled before the type is made; the same for every interpreter.
PyGetSetDef protocol_getset[kSlotNames.size() + kFlagNames.size() + 2] = {};

void fill_protocol_getset() {
  PyGetSetDef* next = protocol_getset;
  for (std::size_t i = 0; i < kSlotNames.size(); ++i) {
    *next++ = {kSlotNames[i], get_slot, set_slot, nullptr, closure_of(i)};
  }
  for (std::size_t i = 0; i < kFlagNames.size(); ++i) {
    *next++ = {kFlagNames[i], get_flag, set_flag, nullptr, closure_of(i)};
  }
  *next = {"_write_buffer_size", get_backlog_bytes, set_backlog_bytes, nullptr, nullptr};
}

PyObject* protocol_new(PyTypeObject* type, PyObject*, PyObject*) {
  ModuleState* state = module_state_of(type);
  if (state == nullptr) {
    return nullptr;
  }
  Ref self = Ref::steal(type->tp_alloc(type, 0));
  if (!self) {
    return nullptr;
  }
  auto* object = reinterpret_cast<TlsProtocolObject*>(self.get());
  new (object->storage) TlsProtocol(self.get(), *state);
  object->constructed = true;
  return self.release();
}

int protocol_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return reinterpret_cast<TlsProtocolObject*>(self)->constructed
             ? tls_protocol_of(self).traverse(visit, arg)
             : 0;
}

int protocol_clear(PyObject* self) {
  if (reinterpret_cast<TlsProtocolObject*>(self)->constructed) {
    tls_protocol_of(self).clear();
  }
  return 0;
}

void protocol_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* object = reinterpret_cast<TlsProtocolObject*>(self);
  if (object->constructed) {
    object->constructed = false;
    tls_protocol_of(self).~TlsProtocol();
  }
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot protocol_slots[] = {
    {Py_tp_doc, const_cast<char*>("The native half of cpploop's SSLProtocol.")},
    {Py_tp_new, reinterpret_cast<void*>(protocol_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(protocol_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(protocol_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(protocol_clear)},
    {Py_tp_methods, protocol_methods},
    {Py_tp_getset, protocol_getset},
    {0, nullptr},
};

PyType_Spec protocol_spec = {
    "cpploop._native.TlsProtocolBase",
    sizeof(TlsProtocolObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    protocol_slots,
};

// ---- the transport ----

struct TlsTransportObject {
  AsyncioTransport base;
  PyObject* protocol;   // _ssl_protocol, null for None.
  TlsProtocol* native;  // Its native half, if it has one.
  bool closed;
};

[[nodiscard]] TlsTransportObject& transport_object(PyObject* self) noexcept {
  return *reinterpret_cast<TlsTransportObject*>(self);
}

// Calls into the native half of the protocol, or the protocol's Python method where there is none.
template <typename Body>
[[nodiscard]] PyObject* write_through(PyObject* self, PyObject* list, Body body) {
  return py::guard([&]() -> PyObject* {
    // Held: code that runs in between may take it away, and so may the loop's thread.
    Ref protocol;
    TlsProtocol* native = nullptr;
    Py_BEGIN_CRITICAL_SECTION(self);
    const TlsTransportObject& transport = transport_object(self);
    protocol = Ref::borrow(transport.protocol == nullptr ? Py_None : transport.protocol);
    native = transport.native;
    Py_END_CRITICAL_SECTION();
    if (native != nullptr) {
      return native->usable_loop() != nullptr && body(*native) ? py::none() : nullptr;
    }
    return PyObject_CallMethod(protocol.get(), "_write_appdata", "O", list);
  });
}

PyObject* transport_write(PyObject* self, PyObject* const* values, Py_ssize_t count,
                          PyObject* keywords) {
  PyObject* data = nullptr;
  if (count == 1 && keywords == nullptr) {
    data = values[0];
  } else {
    const ModuleState* state = module_state_of(Py_TYPE(self));
    data = state == nullptr
               ? nullptr
               : py::only_argument("write", state->str_data, {values, count, keywords});
  }
  if (data == nullptr) {
    return nullptr;
  }
  if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
    PyErr_Format(PyExc_TypeError, "data: expecting a bytes-like instance, got %s",
                 py::type_name(data));
    return nullptr;
  }
  const int some = PyObject_IsTrue(data);
  if (some <= 0) {
    return some == 0 ? py::none() : nullptr;
  }
  if (transport_object(self).native != nullptr) {
    return write_through(self, nullptr, [data](TlsProtocol& p) { return p.write(data); });
  }
  const Ref list = Ref::steal(PyTuple_Pack(1, data));
  return list ? write_through(self, list.get(), [](TlsProtocol&) { return false; }) : nullptr;
}

PyObject* transport_writelines(PyObject* self, PyObject* const* values, Py_ssize_t count,
                               PyObject* keywords) {
  const ModuleState* state = module_state_of(Py_TYPE(self));
  PyObject* list = state == nullptr ? nullptr
                                    : py::only_argument("writelines", state->str_list_of_data,
                                                        {values, count, keywords});
  if (list == nullptr) {
    return nullptr;
  }
  return write_through(self, list, [list](TlsProtocol& p) { return p.writelines(list); });
}

PyMethodDef transport_methods[] = {
    {"write", as_cfunction(transport_write), kFast,
     "write($self, /, data)\n--\n\n"
     "Encrypt and send bytes (asyncio.WriteTransport.write).\n\n"
     "data: bytes, bytearray or memoryview; may be changed after the call."},
    {"writelines", as_cfunction(transport_writelines), kFast,
     "writelines($self, /, list_of_data)\n--\n\n"
     "Encrypt and send several pieces together (asyncio.WriteTransport.writelines)."},
    {nullptr, nullptr, 0, nullptr},
};

PyObject* get_ssl_protocol(PyObject* self, void*) {
  PyObject* protocol = nullptr;
  Py_BEGIN_CRITICAL_SECTION(self);
  protocol = transport_object(self).protocol;
  protocol = py::new_ref(protocol == nullptr ? Py_None : protocol);
  Py_END_CRITICAL_SECTION();
  return protocol;
}
int set_ssl_protocol(PyObject* self, PyObject* value, void*) {
  const ModuleState* state = module_state_of(Py_TYPE(self));
  if (state == nullptr) {
    return -1;
  }
  if (value == Py_None) {
    value = nullptr;
  }
  Ref old;
  Py_BEGIN_CRITICAL_SECTION(self);
  TlsTransportObject& transport = transport_object(self);
  transport.native = value != nullptr && PyObject_TypeCheck(value, state->tls_protocol_base)
                         ? &tls_protocol_of(value)
                         : nullptr;
  Py_XINCREF(value);
  old = Ref::steal(std::exchange(transport.protocol, value));
  Py_END_CRITICAL_SECTION();
  return 0;
}
PyObject* get_closed(PyObject* self, void*) { return py::boolean(transport_object(self).closed); }
int set_closed(PyObject* self, PyObject* value, void*) {
  const int truth = value == nullptr ? 0 : PyObject_IsTrue(value);
  if (truth >= 0) {
    transport_object(self).closed = truth != 0;
  }
  return truth < 0 ? -1 : 0;
}

PyGetSetDef transport_getset[] = {
    {"_ssl_protocol", get_ssl_protocol, set_ssl_protocol, nullptr, nullptr},
    {"_closed", get_closed, set_closed, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

int transport_traverse(PyObject* self, visitproc visit, void* arg) {
  TlsTransportObject& transport = transport_object(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(transport.base.extra);
  Py_VISIT(transport.base.high_water);
  Py_VISIT(transport.base.loop);
  Py_VISIT(transport.base.low_water);
  Py_VISIT(transport.base.protocol_paused);
  Py_VISIT(transport.protocol);
  return 0;
}

int transport_clear(PyObject* self) {
  TlsTransportObject& transport = transport_object(self);
  transport.native = nullptr;
  Py_CLEAR(transport.base.extra);
  Py_CLEAR(transport.base.high_water);
  Py_CLEAR(transport.base.loop);
  Py_CLEAR(transport.base.low_water);
  Py_CLEAR(transport.base.protocol_paused);
  Py_CLEAR(transport.protocol);
  return 0;
}

void transport_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  (void)transport_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// Not inherited, so that object.__new__() does not make one without asyncio's part.
PyObject* transport_new(PyTypeObject* type, PyObject*, PyObject*) {
  return type->tp_alloc(type, 0);
}

PyType_Slot transport_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(transport_new)},
    {Py_tp_doc, const_cast<char*>("The native half of cpploop's TLS transport.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(transport_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(transport_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(transport_clear)},
    {Py_tp_methods, transport_methods},
    {Py_tp_getset, transport_getset},
    {0, nullptr},
};

PyType_Spec transport_spec = {
    "cpploop._native.TlsTransportBase",
    sizeof(TlsTransportObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    transport_slots,
};

// ---- what the edge asks ----

// Whether OpenSSL may be called directly in this process. None, or what forbids it.
PyObject* closed_gate(PyObject* module, PyObject* arguments) {
  return py::guard([&]() -> PyObject* {
    const ModuleState& state = *module_state(module);
    const char* path = nullptr;
    PyObject* ssl_object = nullptr;
    if (!PyArg_ParseTuple(arguments, "sO:_tls_closed_gate", &path, &ssl_object)) {
      return nullptr;
    }
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
      return PyUnicode_FromString("interpreter: OpenSSL's callbacks expect the main one");
    }
    if (!tls::knows_socket_size(
            reinterpret_cast<PyTypeObject*>(state.ssl_socket_type)->tp_basicsize)) {
      return PyUnicode_FromString("layout: this build of Python was not looked at");
    }
    const char* missing = tls::find_openssl(path);
    if (missing != nullptr) {
      return PyUnicode_FromFormat("symbols: %s is not to be found", missing);
    }
    const Ref socket = Ref::steal(PyObject_GetAttr(ssl_object, state.str__sslobj));
    if (!socket) {
      return nullptr;
    }
    if (!Py_IS_TYPE(socket.get(), reinterpret_cast<PyTypeObject*>(state.ssl_socket_type)) ||
        tls::connection_of(socket.get()) == nullptr) {
      return PyUnicode_FromString("layout: OpenSSL does not know the connection");
    }
    return py::none();
  });
}

// The edge's class, whose instances take the short way to and from our transports.
PyObject* register_protocol(PyObject* module, PyObject* type) {
  ModuleState& state = *module_state(module);
  if (PyType_Check(type) == 0 ||
      PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(type), state.tls_protocol_base) == 0) {
    PyErr_SetString(PyExc_TypeError, "a child of TlsProtocolBase is needed");
    return nullptr;
  }
  PyObject* old = reinterpret_cast<PyObject*>(
      std::exchange(state.tls_protocol_type, reinterpret_cast<PyTypeObject*>(py::new_ref(type))));
  Py_XDECREF(old);
  return py::none();
}

PyMethodDef module_functions[] = {
    {"_tls_closed_gate", closed_gate, METH_VARARGS,
     "_tls_closed_gate($module, path, ssl_object, /)\n--\n\n"
     "What forbids to call OpenSSL directly, or None."},
    {"_tls_register", register_protocol, METH_O,
     "_tls_register($module, type, /)\n--\n\nName the class of TLS protocols."},
    {nullptr, nullptr, 0, nullptr},
};

[[nodiscard]] bool import_ssl(ModuleState& state) {
  const Ref ssl = Ref::steal(PyImport_ImportModule("ssl"));
  const Ref native = ssl ? Ref::steal(PyImport_ImportModule("_ssl")) : Ref();
  const Ref sslproto = native ? Ref::steal(PyImport_ImportModule("asyncio.sslproto")) : Ref();
  const Ref states =
      sslproto ? Ref::steal(PyObject_GetAttrString(sslproto.get(), "SSLProtocolState")) : Ref();
  if (!states) {
    return false;
  }
  state.ssl_object_type = PyObject_GetAttrString(ssl.get(), "SSLObject");
  state.memory_bio_type = PyObject_GetAttrString(ssl.get(), "MemoryBIO");
  state.ssl_want_read_error = PyObject_GetAttrString(ssl.get(), "SSLWantReadError");
  state.ssl_syscall_error = PyObject_GetAttrString(ssl.get(), "SSLSyscallError");
  state.ssl_socket_type = PyObject_GetAttrString(native.get(), "_SSLSocket");
  // In the order of TlsProtocol::State.
  constexpr const char* kNames[] = {"UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING", "SHUTDOWN"};
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    state.tls_states[i] = PyObject_GetAttrString(states.get(), kNames[i]);
    if (state.tls_states[i] == nullptr) {
      return false;
    }
  }
  return state.ssl_object_type != nullptr && state.memory_bio_type != nullptr &&
         state.ssl_want_read_error != nullptr && state.ssl_syscall_error != nullptr &&
         state.ssl_socket_type != nullptr && PyType_Check(state.ssl_socket_type) != 0;
}

}  // namespace

bool add_tls_types(PyObject* module, ModuleState& state) {
  if (!import_ssl(state)) {
    return false;
  }
  static std::once_flag filled;
  std::call_once(filled, fill_protocol_getset);
  state.tls_protocol_base =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &protocol_spec, nullptr));
  // The size of asyncio's transport was checked for the stream transports.
  const Ref transports = Ref::steal(PyImport_ImportModule("asyncio.transports"));
  const Ref base = transports
                       ? Ref::steal(PyObject_GetAttrString(transports.get(), "_FlowControlMixin"))
                       : Ref();
  const Ref bases = base ? Ref::steal(PyTuple_Pack(1, base.get())) : Ref();
  if (!bases) {
    return false;
  }
  state.tls_transport_base = reinterpret_cast<PyTypeObject*>(
      PyType_FromModuleAndSpec(module, &transport_spec, bases.get()));
  return state.tls_protocol_base != nullptr && state.tls_transport_base != nullptr &&
         PyModule_AddType(module, state.tls_protocol_base) == 0 &&
         PyModule_AddType(module, state.tls_transport_base) == 0 &&
         PyModule_AddFunctions(module, module_functions) == 0;
}

}  // namespace cpploop

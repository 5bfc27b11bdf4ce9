// The Python type _native.StreamTransport: entry points that hand over to StreamTransport.

#include <array>
#include <new>

#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/stream_transport.h"
#include "binding/transport_calls.h"

namespace cpploop {
namespace {

using py::Ref;
using T = StreamTransport;

template <typename Body>
[[nodiscard]] PyObject* with_transport(PyObject* self, Body body) {
  return call_on_transport<T>(self, body);
}

PyObject* transport_write(PyObject* self, PyObject* const* values, Py_ssize_t count,
                          PyObject* keywords) {
  return with_transport(self, [&](T& t) -> PyObject* {
    PyObject* data =
        py::only_argument("write", t.loop().state().str_data, {values, count, keywords});
    return data == nullptr ? nullptr : t.write(data);
  });
}
PyObject* transport_writelines(PyObject* self, PyObject* const* values, Py_ssize_t count,
                               PyObject* keywords) {
  return with_transport(self, [&](T& t) -> PyObject* {
    PyObject* list = py::only_argument("writelines", t.loop().state().str_list_of_data,
                                       {values, count, keywords});
    return list == nullptr ? nullptr : t.writelines(list);
  });
}
PyObject* transport_can_write_eof(PyObject*, PyObject*) { Py_RETURN_TRUE; }
PyObject* transport_is_closing(PyObject* self, PyObject*) {
  // Finalisers ask this wherever the collector runs.
  if (transport_of(self).opened() && transport_of(self).loop().is_elsewhere()) {
    return py::boolean(transport_of(self).socket().is_closing());
  }
  // Servers ask this after every response, and StreamWriter.drain() does: what is held stays held.
  // That a peer is gone is then found by the send at the end of the turn.
  return with_transport(self, [](T& t) {
    t.socket().flush_unless_held();
    return py::boolean(t.socket().is_closing());
  });
}
PyObject* transport_get_write_buffer_size(PyObject* self, PyObject*) {
  return with_transport(self, [](T& t) {
    t.socket().flush();
    return PyLong_FromSize_t(t.socket().queued_bytes());
  });
}
PyObject* transport_reset_empty_waiter(PyObject* self, PyObject*) {
  return with_transport(self, [](T& t) {
    t.reset_empty_waiter();
    return py::none();
  });
}

PyObject* transport_lend(PyObject* self, PyObject* lent) {
  return with_transport(self, [&](T& t) -> PyObject* {
    t.lend(lent == Py_True);
    return py::none();
  });
}

PyObject* transport_repr(PyObject* self) {
  StreamTransport& t = transport_of(self);
  if (!t.opened()) {
    return PyUnicode_FromFormat("<%s never opened>", py::type_name(self));
  }
  const StreamSocket& socket = t.socket();
  const char* state = !t.descriptor_open() ? " closed" : socket.is_closing() ? " closing" : "";
  if (!t.descriptor_open()) {
    return PyUnicode_FromFormat("<%s%s fd=%d>", py::type_name(self), state, t.descriptor_number());
  }
  return PyUnicode_FromFormat("<%s%s fd=%d read=%s write=<%s, bufsize=%zu>>", py::type_name(self),
                              state, t.descriptor_number(), socket.receives() ? "polling" : "idle",
                              socket.waits_for_kernel() ? "polling" : "idle",
                              socket.queued_bytes());
}

// ---- attributes that asyncio's own code reads ----

PyObject* get_extra(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return t.extra_dict(); });
}
PyObject* get_sock(PyObject* self, void*) {
  return with_transport(self, [](T& t) -> PyObject* {
    t.socket().flush();
    return t.descriptor_open() ? t.python_socket() : py::none();
  });
}
PyObject* get_server(PyObject* self, void*) { return py::or_none(transport_of(self).server()); }
PyObject* get_closing(PyObject* self, void*) { return transport_is_closing(self, nullptr); }
PyObject* get_eof(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return py::boolean(t.socket().eof_written()); });
}
PyObject* get_paused(PyObject* self, void*) { return py::boolean(transport_of(self).paused()); }
using py::as_cfunction;
using py::kFast;

PyMethodDef transport_methods[] = {
    {"write", as_cfunction(transport_write), kFast,
     "write($self, /, data)\n--\n\n"
     "Send bytes, now or as soon as the peer takes them (asyncio.WriteTransport.write).\n\n"
     "data: bytes, bytearray or memoryview; may be changed after the call."},
    {"writelines", as_cfunction(transport_writelines), kFast,
     "writelines($self, /, list_of_data)\n--\n\n"
     "Send several pieces in one system call (asyncio.WriteTransport.writelines)."},
    {"write_eof", transport_method<T, &T::write_eof>, METH_NOARGS,
     "write_eof($self, /)\n--\n\n"
     "Close the writing side once everything is sent (asyncio.WriteTransport.write_eof)."},
    {"can_write_eof", transport_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nTrue (asyncio.WriteTransport.can_write_eof)."},
    {"close", transport_method<T, &T::close>, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Send what is queued, then close; nothing more is received (asyncio.BaseTransport.close)."},
    {"abort", transport_abort<T>, METH_NOARGS,
     "abort($self, /)\n--\n\nClose at once, dropping what is queued "
     "(asyncio.WriteTransport.abort)."},
    {"is_closing", transport_is_closing, METH_NOARGS,
     "is_closing($self, /)\n--\n\n"
     "Whether the transport is closing or closed (asyncio.BaseTransport.is_closing)."},
    {"pause_reading", transport_method<T, &T::pause_reading>, METH_NOARGS,
     "pause_reading($self, /)\n--\n\n"
     "Deliver nothing until resume_reading() (asyncio.ReadTransport.pause_reading)."},
    {"resume_reading", transport_method<T, &T::resume_reading>, METH_NOARGS,
     "resume_reading($self, /)\n--\n\n"
     "Deliver again after pause_reading() (asyncio.ReadTransport.resume_reading)."},
    {"is_reading", transport_is_reading<T>, METH_NOARGS,
     "is_reading($self, /)\n--\n\n"
     "Whether the transport is neither paused nor closing (asyncio.ReadTransport.is_reading)."},
    {"get_write_buffer_size", transport_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\n"
     "Bytes that wait to be sent (asyncio.WriteTransport.get_write_buffer_size)."},
    {"get_write_buffer_limits", transport_get_write_buffer_limits<T>, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\n"
     "The watermarks (low, high) in bytes (asyncio.WriteTransport.get_write_buffer_limits)."},
    {"set_write_buffer_limits", as_cfunction(transport_set_write_buffer_limits<T>), kFast,
     "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
     "Set the watermarks in bytes (asyncio.WriteTransport.set_write_buffer_limits).\n\n"
     "ValueError unless high >= low >= 0."},
    {"set_protocol", as_cfunction(transport_set_protocol<T>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on, of either kind (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", transport_get_protocol<T>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"get_extra_info", as_cfunction(transport_get_extra_info<T>), kFast,
     "get_extra_info($self, /, name, default=None)\n--\n\n"
     "What is known of the connection: 'socket', 'sockname', 'peername', and on TLS 'sslcontext',\n"
     "'ssl_object', 'peercert', 'cipher', 'compression' (asyncio.BaseTransport.get_extra_info)."},
    {"_force_close", transport_method<T, &T::force_close>, METH_O,
     "_force_close($self, exc, /)\n--\n\nClose at once; connection_lost() is told exc."},
    {"_start_reading", transport_method<T, &T::start_reading>, METH_NOARGS,
     "_start_reading($self, /)\n--\n\nReceive for the first time."},
    {"_call_connection_lost", transport_method<T, &T::call_connection_lost>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nEnd the connection and tell the protocol."},
    {"_make_empty_waiter", transport_method<T, &T::make_empty_waiter>, METH_NOARGS,
     "_make_empty_waiter($self, /)\n--\n\nA future for the moment when all is sent."},
    {"_reset_empty_waiter", transport_reset_empty_waiter, METH_NOARGS,
     "_reset_empty_waiter($self, /)\n--\n\nForget that future and allow writing again."},
    {"_lend", transport_lend, METH_O,
     "_lend($self, lent, /)\n--\n\nLeave the descriptor to someone else, or take it back."},
    {nullptr, nullptr, 0, nullptr},
};

// The context in which the protocol hears of data.
PyObject* get_read_context(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return py::or_none(t.read_context()); });
}

PyGetSetDef transport_getset[] = {
    {"_read_context", get_read_context, nullptr, nullptr, nullptr},
    {"_extra", get_extra, nullptr, nullptr, nullptr},
    {"_loop", get_loop_attribute<T>, nullptr, nullptr, nullptr},
    {"_sock", get_sock, nullptr, nullptr, nullptr},
    {"_sock_fd", get_sock_fd_attribute<T>, nullptr, nullptr, nullptr},
    {"_server", get_server, nullptr, nullptr, nullptr},
    {"_protocol", get_protocol_attribute<T>, set_protocol_attribute<T>, nullptr, nullptr},
    {"_closing", get_closing, nullptr, nullptr, nullptr},
    {"_conn_lost", get_conn_lost_attribute<T>, nullptr, nullptr, nullptr},
    {"_eof", get_eof, nullptr, nullptr, nullptr},
    {"_paused", get_paused, nullptr, nullptr, nullptr},
    {"_protocol_paused", get_protocol_paused_attribute<T>, nullptr, nullptr, nullptr},
    {"_high_water", get_high_water_attribute<T>, nullptr, nullptr, nullptr},
    {"_low_water", get_low_water_attribute<T>, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot transport_slots[] = {
    {Py_tp_doc, const_cast<char*>("A connected stream socket, TCP or Unix (asyncio.Transport).")},
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc_transport<T>)},
    {Py_tp_finalize, reinterpret_cast<void*>(finalize_transport<T>)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse_transport<T>)},
    {Py_tp_clear, reinterpret_cast<void*>(clear_transport<T>)},
    {Py_tp_repr, reinterpret_cast<void*>(transport_repr)},
    {Py_tp_methods, transport_methods},
    {Py_tp_getset, transport_getset},
    {0, nullptr},
};

PyType_Spec transport_spec = {
    "cpploop._native.StreamTransportBase",
    sizeof(TransportObject<T>),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
        Py_TPFLAGS_DISALLOW_INSTANTIATION,
    transport_slots,
};

// The type that programs see: a Python-level child, because that is how a type gets __dict__ and
// weak references on every Python version alike.
[[nodiscard]] PyObject* make_public_type(ModuleState& state) {
  Ref sendfile_mode = Ref::steal(PyObject_GetAttrString(state.support, "SENDFILE_TRY_NATIVE"));
  if (!sendfile_mode) {
    return nullptr;
  }
  return PyObject_CallFunction(
      reinterpret_cast<PyObject*>(&PyType_Type), "s(O){sssssOsO}", "StreamTransport",
      state.stream_transport_base, "__module__", "cpploop._native", "__doc__",
      "A connected stream socket, TCP or Unix (asyncio.Transport).", "_start_tls_compatible",
      Py_True, "_sendfile_compatible", sendfile_mode.get());
}

}  // namespace

bool attach_to_server([[maybe_unused]] ModuleState& state, PyObject* server,
                      [[maybe_unused]] PyObject* transport) {
#if PY_VERSION_HEX >= 0x030D0000
  Ref result = Ref::steal(PyObject_CallMethodOneArg(server, state.str__attach, transport));
#else
  Ref result = Ref::steal(PyObject_CallMethodNoArgs(server, state.str__attach));
#endif
  return static_cast<bool>(result);
}

bool detach_from_server([[maybe_unused]] ModuleState& state, PyObject* server,
                        [[maybe_unused]] PyObject* transport) {
#if PY_VERSION_HEX >= 0x030D0000
  Ref result = Ref::steal(PyObject_CallMethodOneArg(server, state.str__detach, transport));
#else
  Ref result = Ref::steal(PyObject_CallMethodNoArgs(server, state.str__detach));
#endif
  return static_cast<bool>(result);
}

bool add_stream_transport_type(PyObject* module, ModuleState& state) {
  Ref base = asyncio_transport_class("_FlowControlMixin", sizeof(AsyncioTransport));
  Ref bases = base ? Ref::steal(PyTuple_Pack(1, base.get())) : Ref();
  if (!bases) {
    return false;
  }
  state.stream_transport_base = reinterpret_cast<PyTypeObject*>(
      PyType_FromModuleAndSpec(module, &transport_spec, bases.get()));
  if (state.stream_transport_base == nullptr) {
    return false;
  }
  state.stream_transport_type = reinterpret_cast<PyTypeObject*>(make_public_type(state));
  return state.stream_transport_type != nullptr &&
         PyModule_AddType(module, state.stream_transport_type) == 0;
}

}  // namespace cpploop

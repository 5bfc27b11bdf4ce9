// The Python type _native.DatagramTransport: entry points that hand over to DatagramTransport.

#include <new>

#include "binding/datagram_transport.h"
#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/transport_calls.h"

namespace cpploop {
namespace {

using py::Ref;
using T = DatagramTransport;

template <typename Body>
[[nodiscard]] PyObject* with_transport(PyObject* self, Body body) {
  return call_on_transport<T>(self, body);
}

PyObject* transport_sendto(PyObject* self, PyObject* const* values, Py_ssize_t count,
                           PyObject* keywords) {
  return with_transport(self, [&](T& t) -> PyObject* {
    ModuleState& state = t.loop().state();
    PyObject* data = nullptr;
    PyObject* address = Py_None;
    const py::Parameter parameters[] = {{state.str_data, &data, false},
                                        {state.str_addr, &address, false}};
    if (!py::parse("sendto", {values, count, keywords}, parameters)) {
      return nullptr;
    }
    return data == nullptr ? py::refuse_missing("sendto", "data") : t.sendto(data, address);
  });
}
PyObject* transport_is_closing(PyObject* self, PyObject*) {
  // Finalisers ask this wherever the collector runs.
  if (datagram_transport_of(self).opened() && datagram_transport_of(self).loop().is_elsewhere()) {
    return py::boolean(datagram_transport_of(self).socket().is_closing());
  }
  return with_transport(self, [](T& t) { return py::boolean(t.socket().is_closing()); });
}
PyObject* transport_get_write_buffer_size(PyObject* self, PyObject*) {
  return with_transport(self, [](T& t) { return PyLong_FromSize_t(t.socket().queued_size()); });
}
PyObject* transport_repr(PyObject* self) {
  DatagramTransport& t = datagram_transport_of(self);
  if (!t.opened()) {
    return PyUnicode_FromFormat("<%s never opened>", py::type_name(self));
  }
  const DatagramSocket& socket = t.socket();
  const char* state = !t.descriptor_open() ? " closed" : socket.is_closing() ? " closing" : "";
  if (!t.descriptor_open() || t.loop().closed()) {
    return PyUnicode_FromFormat("<%s%s fd=%d>", py::type_name(self), state, t.descriptor_number());
  }
  return PyUnicode_FromFormat("<%s%s fd=%d read=%s write=<%s, bufsize=%zu>>", py::type_name(self),
                              state, t.descriptor_number(), socket.receives() ? "polling" : "idle",
                              socket.waits_for_kernel() ? "polling" : "idle", socket.queued_size());
}

// ---- attributes that asyncio's own transports have ----

PyObject* get_extra(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return py::or_none(t.extra()); });
}
PyObject* get_sock(PyObject* self, void*) {
  return with_transport(
      self, [](T& t) { return py::or_none(t.descriptor_open() ? t.python_socket() : nullptr); });
}
PyObject* get_address(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return py::or_none(t.address()); });
}
PyObject* get_closing(PyObject* self, void*) { return transport_is_closing(self, nullptr); }
PyObject* get_paused(PyObject* self, void*) {
  return with_transport(self, [](T& t) { return py::boolean(t.socket().paused()); });
}
using py::as_cfunction;
using py::kFast;

PyMethodDef transport_methods[] = {
    {"sendto", as_cfunction(transport_sendto), kFast,
     "sendto($self, /, data, addr=None)\n--\n\n"
     "Send one datagram, now or as soon as the kernel has room (asyncio.DatagramTransport.sendto)."
     "\n\ndata: bytes, bytearray or memoryview; may be changed after the call.\n"
     "addr: whom to; None on an endpoint that has its one remote address."},
    {"close", transport_method<T, &T::close>, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Send what is queued, then close; nothing more is received (asyncio.BaseTransport.close)."},
    {"abort", transport_abort<T>, METH_NOARGS,
     "abort($self, /)\n--\n\nClose at once, dropping what is queued "
     "(asyncio.DatagramTransport.abort)."},
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
     "What waits to be sent, as the running asyncio counts it: bytes, and with most Pythons eight\n"
     "more for each datagram (asyncio.WriteTransport.get_write_buffer_size)."},
    {"get_write_buffer_limits", transport_get_write_buffer_limits<T>, METH_NOARGS,
     "get_write_buffer_limits($self, /)\n--\n\n"
     "The watermarks (low, high) in bytes (asyncio.WriteTransport.get_write_buffer_limits)."},
    {"set_write_buffer_limits", as_cfunction(transport_set_write_buffer_limits<T>), kFast,
     "set_write_buffer_limits($self, /, high=None, low=None)\n--\n\n"
     "Set the watermarks in bytes (asyncio.WriteTransport.set_write_buffer_limits).\n\n"
     "ValueError unless high >= low >= 0."},
    {"set_protocol", as_cfunction(transport_set_protocol<T>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", transport_get_protocol<T>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"get_extra_info", as_cfunction(transport_get_extra_info<T>), kFast,
     "get_extra_info($self, /, name, default=None)\n--\n\n"
     "What is known of the endpoint: 'socket', 'sockname', 'peername'\n"
     "(asyncio.BaseTransport.get_extra_info)."},
    {"_force_close", transport_method<T, &T::force_close>, METH_O,
     "_force_close($self, exc, /)\n--\n\nClose at once; connection_lost() is told exc."},
    {"_start_reading", transport_method<T, &T::start_reading>, METH_NOARGS,
     "_start_reading($self, /)\n--\n\nReceive for the first time."},
    {"_call_connection_lost", transport_method<T, &T::call_connection_lost>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nEnd the endpoint and tell the protocol."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef transport_getset[] = {
    {"_extra", get_extra, nullptr, nullptr, nullptr},
    {"_loop", get_loop_attribute<T>, nullptr, nullptr, nullptr},
    {"_sock", get_sock, nullptr, nullptr, nullptr},
    {"_sock_fd", get_sock_fd_attribute<T>, nullptr, nullptr, nullptr},
    {"_address", get_address, nullptr, nullptr, nullptr},
    {"_protocol", get_protocol_attribute<T>, set_protocol_attribute<T>, nullptr, nullptr},
    {"_closing", get_closing, nullptr, nullptr, nullptr},
    {"_conn_lost", get_conn_lost_attribute<T>, nullptr, nullptr, nullptr},
    {"_paused", get_paused, nullptr, nullptr, nullptr},
    {"_protocol_paused", get_protocol_paused_attribute<T>, nullptr, nullptr, nullptr},
    {"_high_water", get_high_water_attribute<T>, nullptr, nullptr, nullptr},
    {"_low_water", get_low_water_attribute<T>, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot transport_slots[] = {
    {Py_tp_doc, const_cast<char*>("A datagram socket, UDP or Unix (asyncio.DatagramTransport).")},
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
    "cpploop._native.DatagramTransportBase",
    sizeof(TransportObject<T>),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
        Py_TPFLAGS_DISALLOW_INSTANTIATION,
    transport_slots,
};

// The type that programs see: a Python-level child, because that is how a type gets __dict__ and
// weak references on every Python version alike. Its bases are in the order of asyncio's own.
[[nodiscard]] PyObject* make_public_type(ModuleState& state, PyObject* datagram_transport) {
  return PyObject_CallFunction(reinterpret_cast<PyObject*>(&PyType_Type), "s(OO){ssss}",
                               "DatagramTransport", state.datagram_transport_base,
                               datagram_transport, "__module__", "cpploop._native", "__doc__",
                               "A datagram socket, UDP or Unix (asyncio.DatagramTransport).");
}

[[nodiscard]] bool read_rules(ModuleState& state) {
  Ref rules = Ref::steal(PyObject_GetAttrString(state.support, "DATAGRAM_RULES"));
  Py_ssize_t header = 0;
  int sends_empty = 0;
  if (!rules || !PyArg_ParseTuple(rules.get(), "np", &header, &sends_empty)) {
    return false;
  }
  state.datagram_rules = {static_cast<std::size_t>(header), sends_empty != 0};
  return true;
}

}  // namespace

bool add_datagram_transport_type(PyObject* module, ModuleState& state) {
  Ref base = asyncio_transport_class("_FlowControlMixin", sizeof(AsyncioTransport));
  Ref interface =
      base ? asyncio_transport_class("DatagramTransport", sizeof(AsyncioReadTransport)) : Ref();
  Ref bases = interface ? Ref::steal(PyTuple_Pack(1, base.get())) : Ref();
  if (!bases || !read_rules(state)) {
    return false;
  }
  state.datagram_transport_base = reinterpret_cast<PyTypeObject*>(
      PyType_FromModuleAndSpec(module, &transport_spec, bases.get()));
  if (state.datagram_transport_base == nullptr) {
    return false;
  }
  state.datagram_transport_type =
      reinterpret_cast<PyTypeObject*>(make_public_type(state, interface.get()));
  return state.datagram_transport_type != nullptr &&
         PyModule_AddType(module, state.datagram_transport_type) == 0;
}

}  // namespace cpploop

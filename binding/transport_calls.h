#pragma once

#include "binding/flow_limits.h"
#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/transport_object.h"

// How a Python method of a transport enters the native one, and the methods that all kinds have.
namespace cpploop {

// The transport, if it may be used from here. Null with the Python error set: on free-threaded
// builds another thread than the loop's is refused always.
template <typename Transport>
[[nodiscard]] Transport* usable_transport(Transport& transport) {
  if (!transport.opened()) {
    PyErr_SetString(PyExc_RuntimeError, "the transport was never opened");
    return nullptr;
  }
  // A closed loop's transports still answer; a forked child's must not touch the parent's
  // connection.
  if ((transport.loop().forked() && !transport.loop().check_open()) ||
      (py::kFreeThreaded && !transport.loop().check_thread())) {
    return nullptr;
  }
  return &transport;
}

template <typename Transport, typename Body>
[[nodiscard]] PyObject* call_on_transport(PyObject* self, Body body) {
  return py::guard([&]() -> PyObject* {
    Transport* transport = usable_transport(native_of<Transport>(self));
    if (transport == nullptr) {
      return nullptr;
    }
    Loop& loop = transport->loop();
    const bool was_leaving = loop.leaving();
    PyObject* result = body(*transport);
    if (!was_leaving && loop.leaving()) [[unlikely]] {
      // What a protocol raised inside this very call (KeyboardInterrupt in pause_writing(), say) is
      // the caller's to see first.
      const py::Ref dropped = py::Ref::steal(result);
      PyErr_Clear();
      loop.raise_leaving();
      return nullptr;
    }
    return result;
  });
}

// Methods named by what they call: without an argument, and with one.
template <typename Transport, PyObject* (Transport::*method)()>
PyObject* transport_method(PyObject* self, PyObject*) {
  return call_on_transport<Transport>(self, [](Transport& t) { return (t.*method)(); });
}
template <typename Transport, PyObject* (Transport::*method)(PyObject*)>
PyObject* transport_method(PyObject* self, PyObject* argument) {
  return call_on_transport<Transport>(self, [&](Transport& t) { return (t.*method)(argument); });
}

// ---- BaseTransport ----

template <typename Transport>
PyObject* transport_get_protocol(PyObject* self, PyObject*) {
  return call_on_transport<Transport>(self, [](Transport& t) { return py::or_none(t.protocol()); });
}
template <typename Transport>
PyObject* transport_set_protocol(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                 PyObject* keywords) {
  return call_on_transport<Transport>(self, [&](Transport& t) -> PyObject* {
    PyObject* protocol =
        py::only_argument("set_protocol", t.loop().state().str_protocol, {values, count, keywords});
    return protocol != nullptr && t.set_protocol(protocol) ? py::none() : nullptr;
  });
}
template <typename Transport>
PyObject* transport_get_extra_info(PyObject* self, PyObject* const* values, Py_ssize_t count,
                                   PyObject* keywords) {
  return call_on_transport<Transport>(self, [&](Transport& t) -> PyObject* {
    ModuleState& state = t.loop().state();
    PyObject* name = nullptr;
    PyObject* fallback = Py_None;
    const py::Parameter parameters[] = {{state.str_name, &name, false},
                                        {state.str_default, &fallback, false}};
    if (!py::parse("get_extra_info", {values, count, keywords}, parameters)) {
      return nullptr;
    }
    return name == nullptr ? py::refuse_missing("get_extra_info", "name")
                           : t.get_extra_info(name, fallback);
  });
}

// The attribute _protocol, which asyncio's own code reads and programs exchange.
template <typename Transport>
PyObject* get_protocol_attribute(PyObject* self, void*) {
  return transport_get_protocol<Transport>(self, nullptr);
}
template <typename Transport>
int set_protocol_attribute(PyObject* self, PyObject* value, void*) {
  return py::guard_int([&] {
    if (value == nullptr) {
      PyErr_SetString(PyExc_TypeError, "a transport's protocol cannot be deleted");
      return -1;
    }
    Transport* transport = usable_transport(native_of<Transport>(self));
    return transport != nullptr && transport->set_protocol(value) ? 0 : -1;
  });
}

// ---- transports over sockets ----

template <typename Transport>
PyObject* transport_abort(PyObject* self, PyObject*) {
  return call_on_transport<Transport>(self, [](Transport& t) { return t.force_close(Py_None); });
}
template <typename Transport>
PyObject* transport_is_reading(PyObject* self, PyObject*) {
  return call_on_transport<Transport>(
      self, [](Transport& t) { return py::boolean(t.socket().is_reading()); });
}
template <typename Transport>
PyObject* transport_get_write_buffer_limits(PyObject* self, PyObject*) {
  return call_on_transport<Transport>(self, [](Transport& t) {
    return t.limits().get({static_cast<Py_ssize_t>(t.socket().high_water()),
                           static_cast<Py_ssize_t>(t.socket().low_water())});
  });
}
template <typename Transport>
PyObject* transport_set_write_buffer_limits(PyObject* self, PyObject* const* values,
                                            Py_ssize_t count, PyObject* keywords) {
  return call_on_transport<Transport>(self, [&](Transport& t) -> PyObject* {
    ModuleState& state = t.loop().state();
    PyObject* high = Py_None;
    PyObject* low = Py_None;
    const py::Parameter parameters[] = {{state.str_high, &high, false},
                                        {state.str_low, &low, false}};
    FlowLimits::Bytes bytes;
    if (!py::parse("set_write_buffer_limits", {values, count, keywords}, parameters) ||
        !t.limits().set(high, low, bytes)) {
      return nullptr;
    }
    t.socket().set_limits(static_cast<std::size_t>(bytes.high),
                          static_cast<std::size_t>(bytes.low));
    return py::none();
  });
}

// Attributes that asyncio's own code reads.
template <typename Transport>
PyObject* get_loop_attribute(PyObject* self, void*) {
  Transport& t = native_of<Transport>(self);
  return t.descriptor_open() ? py::new_ref(t.loop().self()) : py::none();
}
template <typename Transport>
PyObject* get_sock_fd_attribute(PyObject* self, void*) {
  return PyLong_FromLong(native_of<Transport>(self).descriptor_number());
}
template <typename Transport>
PyObject* get_conn_lost_attribute(PyObject* self, void*) {
  return call_on_transport<Transport>(
      self, [](Transport& t) { return PyLong_FromUnsignedLong(t.socket().lost_count()); });
}
template <typename Transport>
PyObject* get_protocol_paused_attribute(PyObject* self, void*) {
  return call_on_transport<Transport>(
      self, [](Transport& t) { return py::boolean(t.socket().writing_paused()); });
}
template <typename Transport>
PyObject* get_high_water_attribute(PyObject* self, void*) {
  return call_on_transport<Transport>(
      self, [](Transport& t) { return PyLong_FromSize_t(t.socket().high_water()); });
}
template <typename Transport>
PyObject* get_low_water_attribute(PyObject* self, void*) {
  return call_on_transport<Transport>(
      self, [](Transport& t) { return PyLong_FromSize_t(t.socket().low_water()); });
}

}  // namespace cpploop

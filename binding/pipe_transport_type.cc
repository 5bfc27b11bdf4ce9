// The Python types _native.ReadPipeTransport and _native.WritePipeTransport: entry points that hand
// over to the native transports.

#include <type_traits>

#include "binding/pipe_transport.h"
#include "binding/py/args.h"
#include "binding/py/guard.h"
#include "binding/transport_calls.h"

namespace cpploop {
namespace {

using py::Ref;

template <typename Transport>
PyObject* pipe_is_closing(PyObject* self, PyObject*) {
  // Finalisers ask this wherever the collector runs.
  return py::boolean(native_of<Transport>(self).is_closing());
}
// _add_reader(fd, callback), with the arguments that asyncio's own are called with.
template <typename Transport>
PyObject* pipe_add_reader(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  return call_on_transport<Transport>(self, [&](Transport& t) -> PyObject* {
    if (count != 2) {
      PyErr_Format(PyExc_TypeError, "_add_reader() takes 2 arguments (%zd given)", count);
      return nullptr;
    }
    return t.add_reader(values[1]);
  });
}
PyObject* read_is_reading(PyObject* self, PyObject*) {
  return call_on_transport<ReadPipeTransport>(
      self, [](ReadPipeTransport& t) { return py::boolean(t.is_reading()); });
}
PyObject* write_write(PyObject* self, PyObject* const* values, Py_ssize_t count,
                      PyObject* keywords) {
  return call_on_transport<WritePipeTransport>(self, [&](WritePipeTransport& t) -> PyObject* {
    PyObject* data =
        py::only_argument("write", t.loop().state().str_data, {values, count, keywords});
    return data == nullptr ? nullptr : t.write(data);
  });
}
PyObject* write_can_write_eof(PyObject*, PyObject*) { Py_RETURN_TRUE; }
PyObject* write_get_buffer_size(PyObject* self, PyObject*) {
  return call_on_transport<WritePipeTransport>(
      self, [](WritePipeTransport& t) { return PyLong_FromSize_t(t.queued_bytes()); });
}

// ---- what they look like ----

// asyncio's repr looks at the loop's selector, which a closed loop has no more.
[[nodiscard]] bool loop_has_selector(Loop& loop) {
  Ref selector = Ref::steal(PyObject_GetAttrString(loop.self(), "_selector"));
  PyErr_Clear();
  return selector && !selector.is_none();
}

template <typename Transport>
PyObject* pipe_repr(PyObject* self) {
  return py::guard([&]() -> PyObject* {
    Transport& t = native_of<Transport>(self);
    if (!t.opened()) {
      return PyUnicode_FromFormat("<%s never opened>", py::type_name(self));
    }
    const int fd = t.descriptor_number();
    if (!t.has_pipe()) {
      return PyUnicode_FromFormat("<%s closed fd=%d closed>", py::type_name(self), fd);
    }
    const char* closing = t.is_closing() ? " closing" : "";
    if (!loop_has_selector(t.loop())) {
      return PyUnicode_FromFormat("<%s%s fd=%d open>", py::type_name(self), closing, fd);
    }
    if constexpr (std::is_same_v<Transport, WritePipeTransport>) {
      const char* polling = t.is_polled(kWantWritable) ? "polling" : "idle";
      return PyUnicode_FromFormat("<%s%s fd=%d %s bufsize=%zu>", py::type_name(self), closing, fd,
                                  polling, t.queued_bytes());
    } else {
      const char* polling = t.is_polled(kWantReadable) ? "polling" : "idle";
      return PyUnicode_FromFormat("<%s%s fd=%d %s>", py::type_name(self), closing, fd, polling);
    }
  });
}

// ---- attributes that asyncio's own code reads ----

template <typename Transport>
PyObject* pipe_get_pipe(PyObject* self, void*) {
  return py::or_none(native_of<Transport>(self).pipe());
}
template <typename Transport>
int pipe_set_pipe(PyObject* self, PyObject* value, void*) {
  const Ref done = Ref::steal(call_on_transport<Transport>(self, [&](Transport& t) {
    t.set_pipe(value == Py_None ? nullptr : value);
    return py::none();
  }));
  return done ? 0 : -1;
}
template <typename Transport>
PyObject* pipe_get_closing(PyObject* self, void*) {
  return py::boolean(native_of<Transport>(self).is_closing());
}
PyObject* read_get_loop(PyObject* self, void*) {
  ReadPipeTransport& t = native_of<ReadPipeTransport>(self);
  return t.has_pipe() ? py::new_ref(t.loop().self()) : py::none();
}
PyObject* read_get_paused(PyObject* self, void*) {
  return py::boolean(native_of<ReadPipeTransport>(self).paused());
}
PyObject* write_get_conn_lost(PyObject* self, void*) {
  return PyLong_FromUnsignedLong(native_of<WritePipeTransport>(self).lost_count());
}

using py::as_cfunction;
using py::kFast;
using R = ReadPipeTransport;
using W = WritePipeTransport;

PyMethodDef read_methods[] = {
    {"pause_reading", transport_method<R, &R::pause_reading>, METH_NOARGS,
     "pause_reading($self, /)\n--\n\n"
     "Deliver nothing until resume_reading() (asyncio.ReadTransport.pause_reading)."},
    {"resume_reading", transport_method<R, &R::resume_reading>, METH_NOARGS,
     "resume_reading($self, /)\n--\n\n"
     "Deliver again after pause_reading() (asyncio.ReadTransport.resume_reading)."},
    {"is_reading", read_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\n"
     "Whether the transport is neither paused nor closing (asyncio.ReadTransport.is_reading)."},
    {"close", transport_method<R, &R::close>, METH_NOARGS,
     "close($self, /)\n--\n\nReceive nothing more and close (asyncio.BaseTransport.close)."},
    {"is_closing", pipe_is_closing<R>, METH_NOARGS,
     "is_closing($self, /)\n--\n\n"
     "Whether the transport is closing or closed (asyncio.BaseTransport.is_closing)."},
    {"set_protocol", as_cfunction(transport_set_protocol<R>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", transport_get_protocol<R>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"_add_reader", as_cfunction(pipe_add_reader<R>), METH_FASTCALL,
     "_add_reader($self, fd, callback, /)\n--\n\nBegin to watch, unless paused or closing."},
    {"_read_ready", transport_method<R, &R::read_ready>, METH_NOARGS,
     "_read_ready($self, /)\n--\n\nRead once and tell the protocol."},
    {"_call_connection_lost", transport_method<R, &R::call_connection_lost>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nTell the protocol and close the file."},
    {nullptr, nullptr, 0, nullptr},
};

PyMethodDef write_methods[] = {
    {"write", as_cfunction(write_write), kFast,
     "write($self, /, data)\n--\n\n"
     "Write bytes, now or as soon as the reader makes room (asyncio.WriteTransport.write).\n\n"
     "data: bytes, bytearray or memoryview; may be changed after the call."},
    {"write_eof", transport_method<W, &W::write_eof>, METH_NOARGS,
     "write_eof($self, /)\n--\n\n"
     "Write what is queued, then close: a pipe has no other end (asyncio.WriteTransport)."},
    {"can_write_eof", write_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nTrue (asyncio.WriteTransport.can_write_eof)."},
    {"get_write_buffer_size", write_get_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\n"
     "Bytes that wait to be written (asyncio.WriteTransport.get_write_buffer_size)."},
    {"close", transport_method<W, &W::close>, METH_NOARGS,
     "close($self, /)\n--\n\nWrite what is queued, then close (asyncio.BaseTransport.close)."},
    {"abort", transport_method<W, &W::abort>, METH_NOARGS,
     "abort($self, /)\n--\n\nClose at once, dropping what is queued "
     "(asyncio.WriteTransport.abort)."},
    {"is_closing", pipe_is_closing<W>, METH_NOARGS,
     "is_closing($self, /)\n--\n\n"
     "Whether the transport is closing or closed (asyncio.BaseTransport.is_closing)."},
    {"set_protocol", as_cfunction(transport_set_protocol<W>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", transport_get_protocol<W>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"_add_reader", as_cfunction(pipe_add_reader<W>), METH_FASTCALL,
     "_add_reader($self, fd, callback, /)\n--\n\nBegin to watch for the reader's end."},
    {"_read_ready", transport_method<W, &W::read_ready>, METH_NOARGS,
     "_read_ready($self, /)\n--\n\nClose: the reader is gone."},
    {"_write_ready", transport_method<W, &W::write_ready>, METH_NOARGS,
     "_write_ready($self, /)\n--\n\nWrite what is queued, as much as there is room for."},
    {"_call_connection_lost", transport_method<W, &W::call_connection_lost>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nTell the protocol and close the file."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef read_getset[] = {
    {"_pipe", pipe_get_pipe<R>, pipe_set_pipe<R>, nullptr, nullptr},
    {"_fileno", get_sock_fd_attribute<R>, nullptr, nullptr, nullptr},
    {"_loop", read_get_loop, nullptr, nullptr, nullptr},
    {"_protocol", get_protocol_attribute<R>, set_protocol_attribute<R>, nullptr, nullptr},
    {"_closing", pipe_get_closing<R>, nullptr, nullptr, nullptr},
    {"_paused", read_get_paused, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyGetSetDef write_getset[] = {
    {"_pipe", pipe_get_pipe<W>, pipe_set_pipe<W>, nullptr, nullptr},
    {"_fileno", get_sock_fd_attribute<W>, nullptr, nullptr, nullptr},
    {"_protocol", get_protocol_attribute<W>, set_protocol_attribute<W>, nullptr, nullptr},
    {"_closing", pipe_get_closing<W>, nullptr, nullptr, nullptr},
    {"_conn_lost", write_get_conn_lost, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

// ---- making the types ----

struct PipeType {
  const char* name;         // Of the type that programs see,
  const char* native_name;  // and of the native one below it.
  const char* doc;
  const char* asyncio_base;
  PyMethodDef* methods;
  PyGetSetDef* getset;
};

// The native type and, as its child, the one that programs see: that is how a type gets __dict__
// and weak references on every Python version alike. Null with the Python error set.
template <typename Transport>
[[nodiscard]] PyTypeObject* make_types(PyObject* module, const PipeType& type) {
  Ref base = asyncio_transport_class(type.asyncio_base, sizeof(typename Transport::Base));
  Ref bases = base ? Ref::steal(PyTuple_Pack(1, base.get())) : Ref();
  if (!bases) {
    return nullptr;
  }
  PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>(type.doc)},
      {Py_tp_dealloc, reinterpret_cast<void*>(dealloc_transport<Transport>)},
      {Py_tp_finalize, reinterpret_cast<void*>(finalize_transport<Transport>)},
      {Py_tp_traverse, reinterpret_cast<void*>(traverse_transport<Transport>)},
      {Py_tp_clear, reinterpret_cast<void*>(clear_transport<Transport>)},
      {Py_tp_repr, reinterpret_cast<void*>(pipe_repr<Transport>)},
      {Py_tp_methods, type.methods},
      {Py_tp_getset, type.getset},
      {0, nullptr},
  };
  PyType_Spec spec = {type.native_name, sizeof(TransportObject<Transport>), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
                          Py_TPFLAGS_DISALLOW_INSTANTIATION,
                      slots};
  Ref native = Ref::steal(PyType_FromModuleAndSpec(module, &spec, bases.get()));
  Ref child = native ? Ref::steal(PyObject_CallFunction(
                           reinterpret_cast<PyObject*>(&PyType_Type), "s(O){ssss}", type.name,
                           native.get(), "__module__", "cpploop._native", "__doc__", type.doc))
                     : Ref();
  if (!child || PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(child.get())) != 0) {
    return nullptr;
  }
  return reinterpret_cast<PyTypeObject*>(child.release());
}

template <typename Transport>
[[nodiscard]] PyObject* new_pipe_transport(Loop& loop, PyTypeObject* type, const PipeSpec& spec) {
  Ref self = Ref::steal(allocate_transport<Transport>(type, loop));
  if (!self) {
    return nullptr;
  }
  // asyncio's own constructor fills the slots of its classes.
  PyObject* extra = spec.extra == nullptr ? Py_None : spec.extra;
  Ref made = Ref::steal(std::is_same_v<Transport, WritePipeTransport>
                            ? PyObject_CallMethod(self.get(), "__init__", "OO", extra, loop.self())
                            : PyObject_CallMethod(self.get(), "__init__", "O", extra));
  PyObject* filled = transport_object<Transport>(self.get())->base.extra;
  if (!made || filled == nullptr ||
      PyObject_SetItem(filled, loop.state().str_pipe, spec.pipe) != 0) {
    return nullptr;
  }
  if (!native_of<Transport>(self.get()).start(spec)) {
    py::PendingError error = py::PendingError::take();
    loop.let_go(self.get());
    self.reset();
    error.restore();
    return nullptr;
  }
  return self.release();
}

}  // namespace

PyObject* new_read_pipe_transport(Loop& loop, const PipeSpec& spec) {
  return new_pipe_transport<ReadPipeTransport>(loop, loop.state().read_pipe_type, spec);
}

PyObject* new_write_pipe_transport(Loop& loop, const PipeSpec& spec) {
  return new_pipe_transport<WritePipeTransport>(loop, loop.state().write_pipe_type, spec);
}

bool add_pipe_transport_types(PyObject* module, ModuleState& state) {
  state.read_pipe_type = make_types<ReadPipeTransport>(
      module, {"ReadPipeTransport", "cpploop._native.ReadPipeTransportBase",
               "The reading end of a pipe, a terminal, a device (asyncio.ReadTransport).",
               "ReadTransport", read_methods, read_getset});
  if (state.read_pipe_type == nullptr) {
    return false;
  }
  state.write_pipe_type = make_types<WritePipeTransport>(
      module, {"WritePipeTransport", "cpploop._native.WritePipeTransportBase",
               "The writing end of a pipe, a terminal, a device (asyncio.WriteTransport).",
               "_FlowControlMixin", write_methods, write_getset});
  return state.write_pipe_type != nullptr;
}

}  // namespace cpploop

// The Python types _native.ReadPipeTransport and _native.WritePipeTransport: entry points that hand
// over to the native transports.

#include <new>
#include <type_traits>
#include <utility>

#include "binding/pipe_transport.h"
#include "binding/py/args.h"
#include "binding/py/guard.h"

namespace cpploop {
namespace {

using py::Ref;

// Hands the transport to `body`, if it may be used from here: on free-threaded builds another
// thread than the loop's is refused always, and so is a forked child.
template <typename Transport, typename Body>
[[nodiscard]] PyObject* with_pipe(PyObject* self, Body body) {
  return py::guard([&]() -> PyObject* {
    Transport& transport = pipe_of<Transport>(self);
    if (!transport.opened()) {
      PyErr_SetString(PyExc_RuntimeError, "the transport was never opened");
      return nullptr;
    }
    Loop& loop = transport.loop();
    if ((loop.forked() && !loop.check_open()) || (py::kFreeThreaded && !loop.check_thread())) {
      return nullptr;
    }
    return body(transport);
  });
}

// Methods without arguments, named by what they call.
template <typename Transport, PyObject* (Transport::*method)()>
PyObject* pipe_method(PyObject* self, PyObject*) {
  return with_pipe<Transport>(self, [](Transport& t) { return (t.*method)(); });
}

template <typename Transport>
PyObject* pipe_is_closing(PyObject* self, PyObject*) {
  // Finalisers ask this wherever the collector runs.
  return py::boolean(pipe_of<Transport>(self).is_closing());
}
template <typename Transport>
PyObject* pipe_get_protocol(PyObject* self, PyObject*) {
  return with_pipe<Transport>(self, [](Transport& t) {
    return py::new_ref(t.protocol() == nullptr ? Py_None : t.protocol());
  });
}
template <typename Transport>
PyObject* pipe_set_protocol(PyObject* self, PyObject* const* values, Py_ssize_t count,
                            PyObject* keywords) {
  return with_pipe<Transport>(self, [&](Transport& t) -> PyObject* {
    PyObject* protocol =
        py::only_argument("set_protocol", t.loop().state().str_protocol, {values, count, keywords});
    if (protocol == nullptr) {
      return nullptr;
    }
    t.set_protocol(protocol);
    return py::none();
  });
}
// _add_reader(fd, callback), with the arguments that asyncio's own are called with.
template <typename Transport>
PyObject* pipe_add_reader(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  return with_pipe<Transport>(self, [&](Transport& t) -> PyObject* {
    if (count != 2) {
      PyErr_Format(PyExc_TypeError, "_add_reader() takes 2 arguments (%zd given)", count);
      return nullptr;
    }
    return t.add_reader(values[1]);
  });
}
template <typename Transport>
PyObject* pipe_call_connection_lost(PyObject* self, PyObject* exception) {
  return with_pipe<Transport>(self,
                              [&](Transport& t) { return t.call_connection_lost(exception); });
}

PyObject* read_is_reading(PyObject* self, PyObject*) {
  return with_pipe<ReadPipeTransport>(
      self, [](ReadPipeTransport& t) { return py::boolean(t.is_reading()); });
}
PyObject* write_write(PyObject* self, PyObject* const* values, Py_ssize_t count,
                      PyObject* keywords) {
  return with_pipe<WritePipeTransport>(self, [&](WritePipeTransport& t) -> PyObject* {
    PyObject* data =
        py::only_argument("write", t.loop().state().str_data, {values, count, keywords});
    return data == nullptr ? nullptr : t.write(data);
  });
}
PyObject* write_can_write_eof(PyObject*, PyObject*) { Py_RETURN_TRUE; }
PyObject* write_get_buffer_size(PyObject* self, PyObject*) {
  return with_pipe<WritePipeTransport>(
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
    Transport& t = pipe_of<Transport>(self);
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
  PyObject* pipe = pipe_of<Transport>(self).pipe();
  return py::new_ref(pipe == nullptr ? Py_None : pipe);
}
template <typename Transport>
int pipe_set_pipe(PyObject* self, PyObject* value, void*) {
  const Ref done = Ref::steal(with_pipe<Transport>(self, [&](Transport& t) {
    t.set_pipe(value == Py_None ? nullptr : value);
    return py::none();
  }));
  return done ? 0 : -1;
}
template <typename Transport>
PyObject* pipe_get_fileno(PyObject* self, void*) {
  return PyLong_FromLong(pipe_of<Transport>(self).descriptor_number());
}
template <typename Transport>
PyObject* pipe_get_closing(PyObject* self, void*) {
  return py::boolean(pipe_of<Transport>(self).is_closing());
}
template <typename Transport>
PyObject* pipe_protocol_attribute(PyObject* self, void*) {
  return pipe_get_protocol<Transport>(self, nullptr);
}
template <typename Transport>
int pipe_set_protocol_attribute(PyObject* self, PyObject* value, void*) {
  if (value == nullptr) {
    PyErr_SetString(PyExc_TypeError, "a transport's protocol cannot be deleted");
    return -1;
  }
  Ref done = Ref::steal(pipe_set_protocol<Transport>(self, &value, 1, nullptr));
  return done ? 0 : -1;
}
PyObject* read_get_loop(PyObject* self, void*) {
  ReadPipeTransport& t = pipe_of<ReadPipeTransport>(self);
  return t.has_pipe() ? py::new_ref(t.loop().self()) : py::none();
}
PyObject* read_get_paused(PyObject* self, void*) {
  return py::boolean(pipe_of<ReadPipeTransport>(self).paused());
}
PyObject* write_get_conn_lost(PyObject* self, void*) {
  return PyLong_FromUnsignedLong(pipe_of<WritePipeTransport>(self).lost_count());
}

// ---- life ----

// The slots of asyncio's classes that these types build on, as Python fills them.
template <typename Visitor>
int for_each_slot(ReadPipeTransport::Base& base, Visitor visit) {
  return visit(base.extra);
}
template <typename Visitor>
int for_each_slot(WritePipeTransport::Base& base, Visitor visit) {
  for (PyObject** slot :
       {&base.extra, &base.high_water, &base.loop, &base.low_water, &base.protocol_paused}) {
    if (const int result = visit(*slot); result != 0) {
      return result;
    }
  }
  return 0;
}

template <typename Transport>
[[nodiscard]] PipeObject<Transport>* object_of(PyObject* self) noexcept {
  return reinterpret_cast<PipeObject<Transport>*>(self);
}

template <typename Transport>
int pipe_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  auto* object = object_of<Transport>(self);
  const int result = for_each_slot(object->base, [&](PyObject* slot) {
    Py_VISIT(slot);
    return 0;
  });
  return result == 0 && object->constructed ? pipe_of<Transport>(self).traverse(visit, arg)
                                            : result;
}

template <typename Transport>
void clear_slots(PyObject* self) {
  (void)for_each_slot(object_of<Transport>(self)->base, [](PyObject*& slot) {
    Ref old = Ref::steal(std::exchange(slot, nullptr));
    return 0;
  });
}

template <typename Transport>
int pipe_clear(PyObject* self) {
  clear_slots<Transport>(self);
  if (object_of<Transport>(self)->constructed) {
    pipe_of<Transport>(self).clear();
  }
  return 0;
}

template <typename Transport>
void pipe_finalize(PyObject* self) {
  if (object_of<Transport>(self)->constructed) {
    py::unless_thread_ends([&] { pipe_of<Transport>(self).finalize(); });
  }
}

template <typename Transport>
void pipe_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* object = object_of<Transport>(self);
  if (object->constructed) {
    object->constructed = false;
    pipe_of<Transport>(self).~Transport();
  }
  clear_slots<Transport>(self);
  type->tp_free(self);
  Py_DECREF(type);
}

using py::as_cfunction;
using py::kFast;
using R = ReadPipeTransport;
using W = WritePipeTransport;

PyMethodDef read_methods[] = {
    {"pause_reading", pipe_method<R, &R::pause_reading>, METH_NOARGS,
     "pause_reading($self, /)\n--\n\n"
     "Deliver nothing until resume_reading() (asyncio.ReadTransport.pause_reading)."},
    {"resume_reading", pipe_method<R, &R::resume_reading>, METH_NOARGS,
     "resume_reading($self, /)\n--\n\n"
     "Deliver again after pause_reading() (asyncio.ReadTransport.resume_reading)."},
    {"is_reading", read_is_reading, METH_NOARGS,
     "is_reading($self, /)\n--\n\n"
     "Whether the transport is neither paused nor closing (asyncio.ReadTransport.is_reading)."},
    {"close", pipe_method<R, &R::close>, METH_NOARGS,
     "close($self, /)\n--\n\nReceive nothing more and close (asyncio.BaseTransport.close)."},
    {"is_closing", pipe_is_closing<R>, METH_NOARGS,
     "is_closing($self, /)\n--\n\n"
     "Whether the transport is closing or closed (asyncio.BaseTransport.is_closing)."},
    {"set_protocol", as_cfunction(pipe_set_protocol<R>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", pipe_get_protocol<R>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"_add_reader", as_cfunction(pipe_add_reader<R>), METH_FASTCALL,
     "_add_reader($self, fd, callback, /)\n--\n\nBegin to watch, unless paused or closing."},
    {"_read_ready", pipe_method<R, &R::read_ready>, METH_NOARGS,
     "_read_ready($self, /)\n--\n\nRead once and tell the protocol."},
    {"_call_connection_lost", pipe_call_connection_lost<R>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nTell the protocol and close the file."},
    {nullptr, nullptr, 0, nullptr},
};

PyMethodDef write_methods[] = {
    {"write", as_cfunction(write_write), kFast,
     "write($self, /, data)\n--\n\n"
     "Write bytes, now or as soon as the reader makes room (asyncio.WriteTransport.write).\n\n"
     "data: bytes, bytearray or memoryview; may be changed after the call."},
    {"write_eof", pipe_method<W, &W::write_eof>, METH_NOARGS,
     "write_eof($self, /)\n--\n\n"
     "Write what is queued, then close: a pipe has no other end (asyncio.WriteTransport)."},
    {"can_write_eof", write_can_write_eof, METH_NOARGS,
     "can_write_eof($self, /)\n--\n\nTrue (asyncio.WriteTransport.can_write_eof)."},
    {"get_write_buffer_size", write_get_buffer_size, METH_NOARGS,
     "get_write_buffer_size($self, /)\n--\n\n"
     "Bytes that wait to be written (asyncio.WriteTransport.get_write_buffer_size)."},
    {"close", pipe_method<W, &W::close>, METH_NOARGS,
     "close($self, /)\n--\n\nWrite what is queued, then close (asyncio.BaseTransport.close)."},
    {"abort", pipe_method<W, &W::abort>, METH_NOARGS,
     "abort($self, /)\n--\n\nClose at once, dropping what is queued "
     "(asyncio.WriteTransport.abort)."},
    {"is_closing", pipe_is_closing<W>, METH_NOARGS,
     "is_closing($self, /)\n--\n\n"
     "Whether the transport is closing or closed (asyncio.BaseTransport.is_closing)."},
    {"set_protocol", as_cfunction(pipe_set_protocol<W>), kFast,
     "set_protocol($self, /, protocol)\n--\n\n"
     "Speak to another protocol from now on (asyncio.BaseTransport.set_protocol)."},
    {"get_protocol", pipe_get_protocol<W>, METH_NOARGS,
     "get_protocol($self, /)\n--\n\nThe current protocol (asyncio.BaseTransport.get_protocol)."},
    {"_add_reader", as_cfunction(pipe_add_reader<W>), METH_FASTCALL,
     "_add_reader($self, fd, callback, /)\n--\n\nBegin to watch for the reader's end."},
    {"_read_ready", pipe_method<W, &W::read_ready>, METH_NOARGS,
     "_read_ready($self, /)\n--\n\nClose: the reader is gone."},
    {"_write_ready", pipe_method<W, &W::write_ready>, METH_NOARGS,
     "_write_ready($self, /)\n--\n\nWrite what is queued, as much as there is room for."},
    {"_call_connection_lost", pipe_call_connection_lost<W>, METH_O,
     "_call_connection_lost($self, exc, /)\n--\n\nTell the protocol and close the file."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef read_getset[] = {
    {"_pipe", pipe_get_pipe<R>, pipe_set_pipe<R>, nullptr, nullptr},
    {"_fileno", pipe_get_fileno<R>, nullptr, nullptr, nullptr},
    {"_loop", read_get_loop, nullptr, nullptr, nullptr},
    {"_protocol", pipe_protocol_attribute<R>, pipe_set_protocol_attribute<R>, nullptr, nullptr},
    {"_closing", pipe_get_closing<R>, nullptr, nullptr, nullptr},
    {"_paused", read_get_paused, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyGetSetDef write_getset[] = {
    {"_pipe", pipe_get_pipe<W>, pipe_set_pipe<W>, nullptr, nullptr},
    {"_fileno", pipe_get_fileno<W>, nullptr, nullptr, nullptr},
    {"_protocol", pipe_protocol_attribute<W>, pipe_set_protocol_attribute<W>, nullptr, nullptr},
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
  Py_ssize_t asyncio_size;
  PyMethodDef* methods;
  PyGetSetDef* getset;
};

// The native type and, as its child, the one that programs see: that is how a type gets __dict__
// and weak references on every Python version alike. Null with the Python error set.
template <typename Transport>
[[nodiscard]] PyTypeObject* make_types(PyObject* module, const PipeType& type) {
  Ref transports = Ref::steal(PyImport_ImportModule("asyncio.transports"));
  Ref base =
      transports ? Ref::steal(PyObject_GetAttrString(transports.get(), type.asyncio_base)) : Ref();
  Ref bases = base ? Ref::steal(PyTuple_Pack(1, base.get())) : Ref();
  if (!bases) {
    return nullptr;
  }
  if (reinterpret_cast<PyTypeObject*>(base.get())->tp_basicsize != type.asyncio_size) {
    PyErr_Format(PyExc_ImportError,
                 "cpploop was not built for this Python: asyncio's %s has another size",
                 type.asyncio_base);
    return nullptr;
  }
  PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>(type.doc)},
      {Py_tp_dealloc, reinterpret_cast<void*>(pipe_dealloc<Transport>)},
      {Py_tp_finalize, reinterpret_cast<void*>(pipe_finalize<Transport>)},
      {Py_tp_traverse, reinterpret_cast<void*>(pipe_traverse<Transport>)},
      {Py_tp_clear, reinterpret_cast<void*>(pipe_clear<Transport>)},
      {Py_tp_repr, reinterpret_cast<void*>(pipe_repr<Transport>)},
      {Py_tp_methods, type.methods},
      {Py_tp_getset, type.getset},
      {0, nullptr},
  };
  PyType_Spec spec = {type.native_name, sizeof(PipeObject<Transport>), 0,
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
  Ref self = Ref::steal(type->tp_alloc(type, 0));
  if (!self) {
    return nullptr;
  }
  auto* object = object_of<Transport>(self.get());
  new (object->storage) Transport(self.get(), loop);
  object->constructed = true;
  // asyncio's own constructor fills the slots of its classes.
  PyObject* extra = spec.extra == nullptr ? Py_None : spec.extra;
  Ref made = Ref::steal(std::is_same_v<Transport, WritePipeTransport>
                            ? PyObject_CallMethod(self.get(), "__init__", "OO", extra, loop.self())
                            : PyObject_CallMethod(self.get(), "__init__", "O", extra));
  if (!made || object->base.extra == nullptr ||
      PyObject_SetItem(object->base.extra, loop.state().str_pipe, spec.pipe) != 0) {
    return nullptr;
  }
  if (!pipe_of<Transport>(self.get()).start(spec)) {
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
               "ReadTransport", sizeof(ReadPipeTransport::Base), read_methods, read_getset});
  if (state.read_pipe_type == nullptr) {
    return false;
  }
  state.write_pipe_type = make_types<WritePipeTransport>(
      module, {"WritePipeTransport", "cpploop._native.WritePipeTransportBase",
               "The writing end of a pipe, a terminal, a device (asyncio.WriteTransport).",
               "_FlowControlMixin", sizeof(WritePipeTransport::Base), write_methods, write_getset});
  return state.write_pipe_type != nullptr;
}

}  // namespace cpploop

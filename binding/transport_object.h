#pragma once

#include <new>
#include <utility>

#include "binding/loop.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"

// The Python objects around the native transports: how they are laid out, and how they begin and
// end. A `Transport` names the asyncio class it builds on as `Base`, is constructed from the object
// and its loop, and has traverse(), clear() and finalize().
namespace cpploop {

// The layout of asyncio's _FlowControlMixin, which its own transports derive from (its fallbacks
// ask for it by isinstance).
struct AsyncioTransport {
  PyObject_HEAD PyObject* extra;
  PyObject* high_water;
  PyObject* loop;
  PyObject* low_water;
  PyObject* protocol_paused;
};

// And of asyncio.ReadTransport.
struct AsyncioReadTransport {
  PyObject_HEAD PyObject* extra;
};

template <typename Transport>
struct TransportObject {
  typename Transport::Base base;
  alignas(Transport) unsigned char storage[sizeof(Transport)];
  bool constructed;
};

template <typename Transport>
[[nodiscard]] TransportObject<Transport>* transport_object(PyObject* self) noexcept {
  return reinterpret_cast<TransportObject<Transport>*>(self);
}

// `self` must be an object of that transport's type.
template <typename Transport>
[[nodiscard]] Transport& native_of(PyObject* self) noexcept {
  return *reinterpret_cast<Transport*>(transport_object<Transport>(self)->storage);
}

// A new object with a transport that was never opened, or null with the Python error set.
template <typename Transport>
[[nodiscard]] PyObject* allocate_transport(PyTypeObject* type, Loop& loop) {
  py::Ref self = py::Ref::steal(type->tp_alloc(type, 0));
  if (!self) {
    return nullptr;
  }
  auto* object = transport_object<Transport>(self.get());
  new (object->storage) Transport(self.get(), loop);
  object->constructed = true;
  return self.release();
}

// Visits the slots of asyncio's classes, until the visitor returns something else than 0.
template <typename Visitor>
int for_each_slot(AsyncioReadTransport& base, Visitor visit) {
  return visit(base.extra);
}
template <typename Visitor>
int for_each_slot(AsyncioTransport& base, Visitor visit) {
  for (PyObject** slot :
       {&base.extra, &base.high_water, &base.loop, &base.low_water, &base.protocol_paused}) {
    if (const int result = visit(*slot); result != 0) {
      return result;
    }
  }
  return 0;
}

template <typename Transport>
void clear_slots(PyObject* self) {
  (void)for_each_slot(transport_object<Transport>(self)->base, [](PyObject*& slot) {
    const py::Ref old = py::Ref::steal(std::exchange(slot, nullptr));
    return 0;
  });
}

template <typename Transport>
int traverse_transport(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  auto* object = transport_object<Transport>(self);
  const int result = for_each_slot(object->base, [&](PyObject* slot) {
    Py_VISIT(slot);
    return 0;
  });
  return result == 0 && object->constructed ? native_of<Transport>(self).traverse(visit, arg)
                                            : result;
}

template <typename Transport>
int clear_transport(PyObject* self) {
  clear_slots<Transport>(self);
  if (transport_object<Transport>(self)->constructed) {
    native_of<Transport>(self).clear();
  }
  return 0;
}

template <typename Transport>
void finalize_transport(PyObject* self) {
  if (transport_object<Transport>(self)->constructed) {
    py::unless_thread_ends([self] { native_of<Transport>(self).finalize(); });
  }
}

template <typename Transport>
void dealloc_transport(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* object = transport_object<Transport>(self);
  if (object->constructed) {
    object->constructed = false;
    native_of<Transport>(self).~Transport();
  }
  clear_slots<Transport>(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// A class of asyncio.transports that a native type builds on, if it has the size that the layouts
// above say. Null with the Python error set.
[[nodiscard]] py::Ref asyncio_transport_class(const char* name, std::size_t size);

}  // namespace cpploop

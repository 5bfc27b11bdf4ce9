#include "binding/tracer.h"

#include <new>

namespace cpploop {

using py::Ref;

Ref Tracer::name_of(PyObject* object) const {
  py::PendingError saved = py::PendingError::take();
  Ref name = Ref::steal(PyObject_CallOneArg(name_of_.get(), object));
  PyErr_Clear();
  saved.restore();
  return name;
}

void Tracer::record(Kind kind, Ref name, std::int64_t from_ns, std::int64_t to_ns,
                    std::uint64_t turn) noexcept {
  if (events_.size() >= limit_) {
    ++dropped_;
    return;
  }
  try {
    events_.push_back({std::move(name), from_ns, to_ns, turn, kind});
  } catch (const std::bad_alloc&) {
    ++dropped_;
  }
}

PyObject* Tracer::events() const {
  Ref list = Ref::steal(PyList_New(static_cast<Py_ssize_t>(events_.size())));
  if (!list) {
    return nullptr;
  }
  static constexpr const char* kKinds[] = {"callback", "io", "poll"};
  Py_ssize_t index = 0;
  for (const Event& event : events_) {
    PyObject* entry = Py_BuildValue(
        "sOLLK", kKinds[static_cast<std::size_t>(event.kind)],
        event.name ? event.name.get() : Py_None, static_cast<long long>(event.from_ns),
        static_cast<long long>(event.to_ns), static_cast<unsigned long long>(event.turn));
    if (entry == nullptr) {
      return nullptr;
    }
    PyList_SET_ITEM(list.get(), index++, entry);
  }
  return Py_BuildValue("OK", list.get(), static_cast<unsigned long long>(dropped_));
}

}  // namespace cpploop

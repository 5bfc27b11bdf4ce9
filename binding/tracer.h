#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// What a loop did and when, up to a number of events; what comes after them is only counted. Its
// names are those that a Python function gives to handles and transports.
class Tracer {
 public:
  enum class Kind : std::uint8_t { callback, io, poll };

  Tracer(PyObject* name_of, std::size_t limit)
      : name_of_(py::Ref::borrow(name_of)), limit_(limit) {}

  // How `object` is called in the trace, asked before it runs: afterwards it may have forgotten
  // what it was. Keeps an error in flight.
  [[nodiscard]] py::Ref name_of(PyObject* object) const;
  // `name` may be null.
  void record(Kind kind, py::Ref name, std::int64_t from_ns, std::int64_t to_ns,
              std::uint64_t turn) noexcept;
  // ([(kind, name, from_ns, to_ns, turn), ...], how many more there were). New reference or null.
  [[nodiscard]] PyObject* events() const;

  [[nodiscard]] PyObject* function() const noexcept { return name_of_.get(); }

 private:
  struct Event {
    py::Ref name;
    std::int64_t from_ns;
    std::int64_t to_ns;
    std::uint64_t turn;
    Kind kind;
  };

  py::Ref name_of_;
  std::size_t limit_;
  std::vector<Event> events_;
  std::uint64_t dropped_ = 0;
};

}  // namespace cpploop

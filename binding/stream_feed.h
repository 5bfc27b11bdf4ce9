#pragma once

#include <cstddef>

#include "binding/module_state.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// The short way from a socket to an asyncio.StreamReader: bytes go into the reader's own buffer and
// its waiter is woken, step for step what StreamReaderProtocol.data_received() and
// StreamReader.feed_data() do. Taken only while protocol and reader are exactly asyncio's classes
// with nothing replaced on class or instance; anything unusual (an ended reader, an exported
// buffer) takes the ordinary way, which then says what asyncio says. Belongs to the loop's thread.
class StreamFeed {
 public:
  enum class Outcome { fed, ordinary, failed };

  // Looks at a protocol. False, without an error set, when it is not the plain one.
  [[nodiscard]] bool attach(ModuleState& state, PyObject* protocol);
  void detach() noexcept;
  [[nodiscard]] bool attached() const noexcept { return static_cast<bool>(protocol_); }

  // What one read for the reader may bring: no more than it may have without pausing the transport.
  // What comes on top would only lie there, and push what is read first out of the caches.
  [[nodiscard]] std::size_t read_max() const noexcept { return read_max_; }

  // Delivers `size` bytes, more than none. `failed` has the Python error set.
  [[nodiscard]] Outcome feed(ModuleState& state, const char* data, std::size_t size);

  [[nodiscard]] PyObject* protocol() const noexcept { return protocol_.get(); }

 private:
  [[nodiscard]] bool classes_unchanged(const ModuleState& state) const noexcept;

  // A reader that keeps less is fed by the piece all the same.
  static constexpr std::size_t kReadMaxLeast = 64 * 1024;

  py::Ref protocol_;
  std::size_t read_max_ = kReadMaxLeast;
  // What the classes looked like when they were found plain.
  unsigned int protocol_version_ = 0;
  unsigned int reader_version_ = 0;
};

}  // namespace cpploop

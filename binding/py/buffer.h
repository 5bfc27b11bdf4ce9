#pragma once

#include <cstddef>
#include <utility>

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop::py {

// An exported buffer, released when this goes. It must not outlive the call that took it: a
// bytearray with an export cannot be resized by its owner.
class BufferView {
 public:
  BufferView() noexcept = default;
  BufferView(BufferView&& other) noexcept
      : view_(other.view_), held_(std::exchange(other.held_, false)) {}
  BufferView& operator=(BufferView&& other) noexcept {
    if (this != &other) {
      release();
      view_ = other.view_;
      held_ = std::exchange(other.held_, false);
    }
    return *this;
  }
  BufferView(const BufferView&) = delete;
  BufferView& operator=(const BufferView&) = delete;
  ~BufferView() { release(); }

  // False with the Python error set when the object has no such buffer.
  [[nodiscard]] bool acquire(PyObject* object, int flags) noexcept {
    release();
    held_ = PyObject_GetBuffer(object, &view_, flags) == 0;
    return held_;
  }
  void release() noexcept {
    if (std::exchange(held_, false)) {
      before_release();
      PyBuffer_Release(&view_);
    }
  }

  [[nodiscard]] bool held() const noexcept { return held_; }
  // Borrowed, for traverse(); null when nothing is held.
  [[nodiscard]] PyObject* exporter() const noexcept { return held_ ? view_.obj : nullptr; }
  [[nodiscard]] void* data() const noexcept { return view_.buf; }
  [[nodiscard]] std::size_t size() const noexcept { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

}  // namespace cpploop::py

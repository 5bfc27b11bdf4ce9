#pragma once

#include <cstddef>
#include <cstdint>

#include "binding/loop.h"
#include "binding/py/args.h"
#include "binding/py/buffer.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "core/os/socket_ops.h"

namespace cpploop {

// The loop's sock_*() methods. sock_sendfile() is asyncio's own, over these and the watchers.
enum class SockCall : std::uint8_t {
  recv,
  recv_into,
  recvfrom,
  recvfrom_into,
  sendall,
  sendto,
  connect,
  accept,
};

// loop.sock_recv(...) and its kin: a coroutine, native where the socket and the arguments are of
// the usual kinds, asyncio's own for all others. New reference, or null with the Python error set.
[[nodiscard]] PyObject* start_sock_call(PyObject* loop, SockCall call, const py::CallArgs& args);

// What such a method returns: a coroutine in all that asyncio and `await` ask of one. Nothing
// happens before it is first sent to. Then the system call is tried at once, and only if the kernel
// would have waited does it suspend, on a future of the loop's, with itself as the watcher of the
// descriptor. The watcher tries again, sets the future's outcome and goes; it goes also as soon as
// the coroutine is thrown into or closed, so that nothing is read for nobody.
//
// Belongs to the loop's thread while the loop runs.
class SockOperation {
 public:
  static constexpr Py_ssize_t kArgumentsMax = 2;  // Behind the socket.

  // `arguments` are the method's: the socket first.
  SockOperation(PyObject* self, Loop& loop, SockCall call, PyObject* const* arguments,
                Py_ssize_t count);
  ~SockOperation() = default;
  SockOperation(const SockOperation&) = delete;
  SockOperation& operator=(const SockOperation&) = delete;

  // The coroutine's methods. `result` is a new reference, or null with the Python error set.
  [[nodiscard]] PySendResult send(PyObject* value, PyObject** result);
  [[nodiscard]] PySendResult throw_in(PyObject* exception, PyObject** result);
  [[nodiscard]] bool close();

  // As a watcher: the descriptor is ready.
  void on_ready();

  [[nodiscard]] SockCall call() const noexcept { return call_; }
  [[nodiscard]] bool suspended() const noexcept { return awaited_ && !running_; }
  [[nodiscard]] bool running() const noexcept { return running_; }
  // One of the names that inspect.getcoroutinestate() knows.
  [[nodiscard]] const char* state_name() const noexcept;

  // The object is going away, or is garbage.
  void finalize();
  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

 private:
  enum class Stage : std::uint8_t {
    created,
    waiting,    // For the future that the watcher completes.
    resolving,  // In loop._ensure_resolved(), before a connect.
    delegated,  // asyncio's own coroutine does it all.
    finished,
  };
  // The outcome of one try. `unusual`: nothing was done, the socket's own method knows what to say.
  enum class Attempt : std::uint8_t { done, again, failed, unusual };

  // A read of more than this lands in its bytes object if the one before it was as large.
  static constexpr std::size_t kDirectReadFrom = 32 * 1024;

  [[nodiscard]] bool enter() noexcept;
  [[nodiscard]] PySendResult leave(PySendResult outcome);
  void finish() noexcept;
  [[nodiscard]] bool receives() const noexcept;
  [[nodiscard]] bool is_still_open_after(PyObject* memory) const noexcept;
  void stop_watching() noexcept;

  [[nodiscard]] PySendResult begin(PyObject** result);
  [[nodiscard]] bool is_usual();
  [[nodiscard]] bool take_size(PyObject* object);
  [[nodiscard]] PySendResult first_attempt(PyObject** result);
  [[nodiscard]] PySendResult delegate(PyObject** result);
  [[nodiscard]] PySendResult resolve(PyObject** result);
  [[nodiscard]] PySendResult resolved(PyObject* infos, PyObject** result);
  [[nodiscard]] PySendResult wait(PyObject** result);
  [[nodiscard]] PySendResult resume(PyObject* value, PyObject** result);

  [[nodiscard]] Attempt attempt(py::Ref& result);
  [[nodiscard]] Attempt attempt_when_ready(py::Ref& result);
  [[nodiscard]] Attempt receive(py::Ref& result, bool with_address);
  [[nodiscard]] Attempt receive_into(py::Ref& result, bool with_address);
  [[nodiscard]] Attempt send_rest(py::Ref& result);
  [[nodiscard]] Attempt accept(py::Ref& result);
  [[nodiscard]] Attempt connect(py::Ref& result);
  [[nodiscard]] Attempt connect_outcome(py::Ref& result);
  [[nodiscard]] Attempt ask_socket(py::Ref& result);
  [[nodiscard]] IoResult receive_bytes(py::Ref& bytes, os::SocketAddress* from);

  PyObject* self_;  // Borrowed: this lives inside it.
  py::Ref loop_object_;
  Loop* loop_;
  py::Ref sock_;
  py::Ref arguments_[kArgumentsMax];
  py::Ref awaited_;  // What the coroutine is suspended in: an iterator or a coroutine.
  py::Ref future_;   // What the watcher completes.
  py::BufferView
      data_;  // sendall: exported while there is something left to send, as asyncio does.
  std::size_t size_ = 0;  // Bytes to read at most; of sendall, bytes sent.
  int fd_ = -1;
  SockCall call_;
  Stage stage_ = Stage::created;
  bool running_ = false;
};

struct SockOperationObject {
  PyObject_HEAD PyObject* weakrefs;
#if PY_VERSION_HEX >= 0x030E0000
  // `python -m asyncio ps` reads every task's coroutine, in another process's memory, as if it were
  // Python's own. Zeros up to where that one's frame begins say: no frame, not suspended in one.
  void* no_frame[8];
#endif
  alignas(SockOperation) unsigned char storage[sizeof(SockOperation)];
};

// `object` must be of the module's sock_operation_type.
[[nodiscard]] inline SockOperation& sock_operation_of(PyObject* object) noexcept {
  return *reinterpret_cast<SockOperation*>(reinterpret_cast<SockOperationObject*>(object)->storage);
}

// What differs from one call to another by name and number.
struct SockCallTraits {
  const char* name;
  Py_ssize_t arguments_min;  // The socket among them.
  Py_ssize_t arguments_max;
  Wanted wanted;
  SocketMember method;  // Of the socket, which asyncio would call.
};
[[nodiscard]] const SockCallTraits& traits_of(SockCall call) noexcept;

// An operation that has not begun. New reference or null.
[[nodiscard]] PyObject* new_sock_operation(Loop& loop, SockCall call, PyObject* const* arguments,
                                           Py_ssize_t count);

// asyncio's own method, on our loop: its coroutine. New reference or null.
[[nodiscard]] PyObject* asyncio_sock_call(Loop& loop, SockCall call, const py::CallArgs& args);

}  // namespace cpploop

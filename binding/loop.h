#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "binding/module_state.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "binding/shared_context.h"
#include "binding/tls/scratch.h"
#include "binding/tracer.h"
#include "core/engine.h"
#include "core/os/process.h"

namespace cpploop {

class StreamTransport;
struct DueTime;

// The methods a subclass or an instance may replace, and which asyncio itself would call through
// the loop. Looked up when a loop is made or such an attribute is set, not per call.
struct LoopOverrides {
  bool time = false;
  bool call_soon = false;
  bool call_at = false;
  // Anything that asyncio's sock_*() use to wait for a descriptor.
  bool watchers = false;
  // asyncio's own steps between a host and a connected socket.
  bool connecting = false;
  [[nodiscard]] bool any() const noexcept { return time || call_soon || call_at; }
};

// The native half of a Python loop: the engine's host. One thread owns it while it runs; from
// others only post_threadsafe() and the inbox's wake() are allowed.
class Loop final : private Host, private Clock {
 public:
  // Throws std::system_error or std::bad_alloc.
  Loop(PyObject* self, ModuleState& state, BackendChoice backend);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  [[nodiscard]] ModuleState& state() noexcept { return state_; }
  [[nodiscard]] Engine& engine() noexcept { return engine_; }
  [[nodiscard]] PyObject* self() noexcept { return self_; }
  [[nodiscard]] bool debug() const noexcept { return debug_; }
  void set_debug(bool debug) noexcept {
    debug_ = debug;
    engine_.time_callbacks(is_watched());
  }
  // Records what runs from now on, until it is stopped; see Tracer. The loop's thread only.
  void start_trace(PyObject* name_of, std::size_t limit);
  // What was recorded. New reference, or null with the Python error set.
  [[nodiscard]] PyObject* stop_trace();
  [[nodiscard]] bool is_traced() const noexcept { return tracer_ != nullptr; }
  [[nodiscard]] bool closed() const noexcept { return closed_; }
  [[nodiscard]] bool running() const noexcept { return thread_id_ != 0; }

  // Runs turns until stopped. False with the Python error set.
  [[nodiscard]] bool run();
  // One turn, for programs that drive the loop themselves; may be called from a callback of the
  // loop's own. False with the Python error set.
  [[nodiscard]] bool run_once();
  // Drops what is queued, lets go of the transports and closes the engine's descriptors.
  void close();

  // The checks that open every entry point. False with RuntimeError set.
  [[nodiscard]] bool check_open() noexcept {
    if (closed_ || forked()) [[unlikely]] {
      return refuse_closed_or_forked();
    }
    return true;
  }
  [[nodiscard]] bool check_thread() noexcept {
    if (py::kFreeThreaded || debug_) [[unlikely]] {
      return refuse_wrong_thread();
    }
    return true;
  }
  // Whether what watches a descriptor is a sock_*() call under way, and no handle.
  [[nodiscard]] bool is_operation(PyObject* watcher) const noexcept {
    return Py_TYPE(watcher) == state_.sock_operation_type;
  }
  // Whether the loop is another thread's just now, or another process's.
  [[nodiscard]] bool is_elsewhere() const noexcept {
    return forked() || (thread_id_ != 0 && thread_id_ != PyThread_get_thread_ident());
  }
  // asyncio's _check_callback(), which its loops call in debug mode only. False with TypeError set.
  [[nodiscard]] bool check_callback(PyObject* callback, const char* method) {
    return !debug_ || check_callback_in_debug(callback, method);
  }
  [[nodiscard]] bool forked() const noexcept { return fork_generation_ != os::fork_generation(); }

  // Queues a callback as loop.call_soon(callback, *args, context=context) would, through an
  // override if there is one. False with the Python error set.
  [[nodiscard]] bool schedule(PyObject* callback, PyObject* const* args, Py_ssize_t arg_count,
                              PyObject* context);

  // A new reference to a handle, or null with the Python error set.
  [[nodiscard]] PyObject* call_soon(PyObject* callback, PyObject* const* args, Py_ssize_t arg_count,
                                    PyObject* context);
  [[nodiscard]] PyObject* call_soon_threadsafe(PyObject* callback, PyObject* const* args,
                                               Py_ssize_t arg_count, PyObject* context);
  [[nodiscard]] PyObject* call_at(const DueTime& when, PyObject* callback, PyObject* const* args,
                                  Py_ssize_t arg_count, PyObject* context);
  void timer_cancelled(PyObject* handle);
  // Any thread: whether another thread, the loop's, is calling the thread-safe handle's callback
  // (always false before Python 3.14); and to wait until it is not.
  [[nodiscard]] bool runs_elsewhere(PyObject* handle) const;
  void wait_for_callback(PyObject* handle);
  // The loop's thread: the callback of a thread-safe handle returned.
  void callback_over(PyObject* handle);

  // Hands an exception to loop.call_exception_handler(), or keeps it to leave run() with: that is
  // for KeyboardInterrupt and SystemExit, and for what the handler itself lets escape.
  void report(const char* message, py::PendingError error, PyObject* transport, PyObject* protocol);
  // The same for the error in flight, which the handle's callback raised.
  void callback_failed(PyObject* handle);
  // The same where the engine called, whom no handle stands for; `name` is that of the method that
  // asyncio's handle would have.
  void io_callback_failed(const char* name);
  // Keeps the error in flight (if any) as the one that leaves run().
  void leave_with_error();
  void leave_with(py::PendingError error);
  // The exception that was to leave run(), in flight again: for a caller that can raise it itself.
  void raise_leaving();
  [[nodiscard]] bool leaving() const noexcept { return static_cast<bool>(leaving_); }

  // The watchers behind add_reader() and add_writer(). New reference or null.
  [[nodiscard]] PyObject* add_watcher(int fd, Wanted what, PyObject* callback,
                                      PyObject* const* args, Py_ssize_t arg_count,
                                      PyObject* context);
  // The handle of such a watcher, borrowed, or null.
  [[nodiscard]] PyObject* watcher_at(int fd, Wanted what) const noexcept;
  // 1 removed, 0 nothing there, -1 error.
  [[nodiscard]] int remove_watcher(int fd, Wanted what);

  // Has the callback called once, without arguments, when a child process ends; ENOSYS where the
  // backend watches no processes. False with the Python error set.
  [[nodiscard]] bool watch_process(pid_t process, PyObject* callback);
  void unwatch_process(pid_t process) noexcept;

  // The same for a SockOperation, which is its own callback. False with the Python error set.
  [[nodiscard]] bool watch(int fd, Wanted what, PyObject* operation);
  // Only if it is this one that waits there.
  void unwatch(int fd, Wanted what, PyObject* operation) noexcept;
  // For one that has read from `sock` and found nothing. rest() ends that when it has read
  // something: the next wait of the same socket costs no system call then. look_again(), when it
  // has found nothing although it was told.
  [[nodiscard]] bool watch_after_read(int fd, PyObject* sock, PyObject* operation);
  void rest(int fd, PyObject* operation) noexcept;
  void look_again(int fd) noexcept { engine_.watchers().look_again(fd); }

  // Files given as objects, by identity: remove_reader() finds one again after it was closed.
  void remember_descriptor(PyObject* object, int fd);  // Throws std::bad_alloc.
  [[nodiscard]] int descriptor_when_added(PyObject* object) const noexcept;  // -1: unknown.

  // Open transports by descriptor; each is held by the loop until its connection_lost.
  [[nodiscard]] PyObject* transport_at(int fd) const noexcept;
  void hold_transport(int fd, PyObject* transport);  // Throws std::bad_alloc.
  void drop_transport(int fd, PyObject* transport) noexcept;

  // Whether asyncio's own transports were made, which keep their own account of descriptors.
  [[nodiscard]] bool has_transports_of_asyncio() const noexcept { return has_asyncios_; }
  void expect_transports_of_asyncio() noexcept { has_asyncios_ = true; }

  // Open transports whose number is no sign of them: several pipe transports may share one.
  void hold(PyObject* transport);  // Throws std::bad_alloc.
  void let_go(PyObject* transport) noexcept;
  // What is queued, for asyncio's private names: everything that is ready or was posted by other
  // threads, the handles among it, and the timers by deadline. New references or null.
  [[nodiscard]] std::size_t ready_count();
  [[nodiscard]] PyObject* ready_handles();
  [[nodiscard]] PyObject* scheduled_handles();
  [[nodiscard]] PyObject* open_transports();
  // Queues a handle behind what is ready: one of this loop's as it is, any other through `_run()`.
  // False with the Python error set.
  [[nodiscard]] bool append_ready(PyObject* handle);

  // Memory for reads that are copied out at once.
  static constexpr std::size_t kScratchSize = 256 * 1024;
  [[nodiscard]] char* scratch();
  [[nodiscard]] TlsScratch& tls_scratch() noexcept { return tls_scratch_; }

  // What the I/O event under way belongs to, for the slow-callback log and the trace.
  void note_io(PyObject* object) {
    if (is_watched()) [[unlikely]] {
      io_object_ = py::Ref::borrow(object);
    }
  }

  void note_attribute_set(PyObject* name);
  void find_overrides();
  [[nodiscard]] const LoopOverrides& overrides() {
    // A type that was changed since (a method replaced on the class) has another version.
    if (Py_TYPE(self_)->tp_version_tag != known_type_version_) [[unlikely]] {
      find_overrides();
    }
    return overrides_;
  }

  [[nodiscard]] int traverse(visitproc visit, void* arg);
  void clear();

  // Attributes that asyncio's Python code reads and writes on the loop.
  PyObject* thread_id_object();
  [[nodiscard]] bool set_thread_id(PyObject* value);

  [[nodiscard]] SharedContexts& contexts() noexcept { return contexts_; }

  PyObject* task_factory = nullptr;
  std::size_t last_sock_read = 0;  // Bytes of the last sock_recv() or sock_recvfrom().
  // scratch() holds ciphertext that is being read, while code of the program's may run: who
  // receives meanwhile takes memory of its own.
  bool scratch_lent = false;

 private:
  [[nodiscard]] bool added_watcher(const ReadinessWatchers::Added& added, PyObject* operation);
  // By the function of this name in the Python half, which tells what callback it was.
  void report_callback(py::PendingError error, const char* reporter, PyObject* callback);
  // Host.
  void run(Token token) override;
  void drop(Token token) noexcept override;
  void notify(Token token) override;
  [[nodiscard]] bool timer_left_heap(Token token) noexcept override;
  [[nodiscard]] bool is_cancelled(Token token) const noexcept override;
  void about_to_block() noexcept override;
  void woke_up() override;
  void wait_interrupted() override;
  void io_begins() override;
  void io_ended() override;
  void stayed_busy() override;
  // Clock: only when time() is overridden.
  [[nodiscard]] std::int64_t now_ns() override;

  [[nodiscard]] bool cancel_watcher(PyObject* watcher);
  class Turns;

  // Whether somebody wants to know what runs and for how long.
  [[nodiscard]] bool is_watched() const noexcept { return debug_ || tracer_ != nullptr; }
  void run_watched(PyObject* handle);
  void run_timed(PyObject* handle);
  // What run() and run_once() make of the engine's result.
  [[nodiscard]] bool ended_well(int error);
  // A loop that does not run belongs to no thread: on free-threaded builds several may schedule
  // then.
  template <typename Body>
  void locked(Body body) {
#ifdef Py_GIL_DISABLED
    std::exception_ptr failure;
    Py_BEGIN_CRITICAL_SECTION(self_);
    try {
      body();
    } catch (const std::bad_alloc&) {
      failure = std::current_exception();
    }
    Py_END_CRITICAL_SECTION();
    if (failure) {
      std::rethrow_exception(failure);
    }
#else
    body();
#endif
  }
  [[nodiscard]] bool check_callback_in_debug(PyObject* callback, const char* method);
  [[nodiscard]] bool refuse_closed_or_forked() noexcept;
  [[nodiscard]] bool tracks_later() noexcept;
  void give_up(py::Ref handle) noexcept;
  void track_queued_handles() noexcept;
  [[nodiscard]] bool refuse_wrong_thread() noexcept;

  // The module whose state everything here uses. First, so that it goes last: a collected type lets
  // go of its module while instances of it are still being taken apart.
  py::Ref module_;
  PyObject* self_;  // Borrowed: this lives inside it.
  ModuleState& state_;
  Engine engine_;
  std::vector<PyObject*> transports_;   // By descriptor; owned references.
  std::unordered_set<PyObject*> held_;  // Owned references.
  std::vector<std::pair<py::Ref, int>> watched_objects_;
  // By descriptor, a weak reference to the socket whose reader was there last.
  std::vector<py::Ref> resting_sockets_;
  std::unique_ptr<char[]> scratch_;
  TlsScratch tls_scratch_;
  PyThreadState* saved_thread_ = nullptr;
  py::PendingError leaving_;
  SharedContexts contexts_;
  py::Ref io_object_;
  std::unique_ptr<Tracer> tracer_;
  std::int64_t blocked_ns_ = 0;  // Since when, while traced.
  LoopOverrides overrides_;
  unsigned int known_type_version_ = 0;
  std::int64_t io_started_ns_ = 0;
  unsigned long thread_id_ = 0;  // 0: not running.
  std::atomic<unsigned long> turning_thread_{0};
  bool has_untracked_ = false;
  // Guards the `running` mark of thread-safe handles.
  std::mutex callback_mutex_;
  std::atomic<unsigned> callback_waiters_{0};
  std::condition_variable callback_over_;
  std::uint32_t fork_generation_;
  bool finalizing_when_blocked_ = false;
  bool debug_ = false;
  bool closed_ = false;
  bool has_asyncios_ = false;
};

struct LoopObject {
  PyObject_HEAD alignas(Loop) unsigned char storage[sizeof(Loop)];
  bool constructed;
};

// `object` must be an instance of the native loop type.
[[nodiscard]] inline Loop& loop_of(PyObject* object) noexcept {
  return *reinterpret_cast<Loop*>(reinterpret_cast<LoopObject*>(object)->storage);
}

// loop.create_future(): an asyncio.futures.Future. New reference or null.
[[nodiscard]] PyObject* new_future(Loop& loop);

// Deadlines never lie before what the caller asked for: rounded up, clamped at both ends. NaN is
// the caller's to refuse.
[[nodiscard]] std::int64_t deadline_ns_from_seconds(double seconds) noexcept;

}  // namespace cpploop

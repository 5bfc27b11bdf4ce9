#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "binding/loop.h"
#include "binding/outgoing.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "binding/stream_feed.h"
#include "binding/transport_object.h"
#include "binding/transport_parts.h"
#include "core/net/pipe_writer.h"
#include "core/os/pipe_ops.h"

namespace cpploop {

// What a pipe transport is made from; all borrowed, null where absent or None.
struct PipeSpec {
  PyObject* pipe = nullptr;  // The Python file; it owns the descriptor and stays its only closer.
  PyObject* protocol = nullptr;
  PyObject* waiter = nullptr;
  PyObject* extra = nullptr;
};

// Each schedules connection_made, the start of watching and the waiter, in asyncio's order. New
// reference, or null with the Python error set.
[[nodiscard]] PyObject* new_read_pipe_transport(Loop& loop, const PipeSpec& spec);
[[nodiscard]] PyObject* new_write_pipe_transport(Loop& loop, const PipeSpec& spec);

// What both directions of a pipe transport share: the file, the protocol, and the end of them. It
// watches the file through the loop's table of readers and writers, one of each per descriptor, so
// that two transports on one descriptor, or a transport and add_reader(), meet as they do on
// asyncio. Belongs to the loop's thread.
class PipeTransport {
 public:
  PipeTransport(PyObject* self, Loop& loop);
  PipeTransport(const PipeTransport&) = delete;
  PipeTransport& operator=(const PipeTransport&) = delete;

  [[nodiscard]] Loop& loop() noexcept { return *loop_; }
  [[nodiscard]] bool opened() const noexcept { return opened_; }
  // Until connection_lost has run.
  [[nodiscard]] bool has_pipe() const noexcept { return static_cast<bool>(pipe_); }
  [[nodiscard]] PyObject* pipe() const noexcept { return pipe_.get(); }
  // Another closer from now on; null leaves the descriptor to somebody else.
  void set_pipe(PyObject* pipe);
  [[nodiscard]] int descriptor_number() const noexcept { return fd_; }
  [[nodiscard]] PyObject* protocol() const noexcept { return protocol_.get(); }
  [[nodiscard]] bool is_closing() const noexcept { return closing_; }
  // Whether anybody watches the descriptor, as the repr says.
  [[nodiscard]] bool is_polled(Wanted what) noexcept { return loop_->watcher_at(fd_, what); }
  void finalize();

 protected:
  // The steps of asyncio's constructors that the two have in common. False with the error set.
  [[nodiscard]] bool open(const PipeSpec& spec, const char* refusal);
  [[nodiscard]] bool schedule_start(const PipeSpec& spec, bool watches);
  [[nodiscard]] os::FileKind kind() const noexcept { return kind_; }

  // False once the file was closed by somebody else: the number may be another file's by now.
  [[nodiscard]] bool file_is_open();
  [[nodiscard]] IoResult read(std::span<const iovec> parts);
  // Both false with the Python error set.
  [[nodiscard]] bool watch(Wanted what, PyObject* callback);
  [[nodiscard]] bool unwatch(Wanted what);

  // connection_lost is due; later calls change nothing.
  [[nodiscard]] bool schedule_lost(PyObject* exception);
  // Tells the protocol and closes the file.
  [[nodiscard]] bool lose(PyObject* exception);
  void set_protocol_object(PyObject* protocol);

  void log(const char* function, const char* text) { log_in_debug(*loop_, self_, function, text); }
  [[nodiscard]] int traverse_shared(visitproc visit, void* arg) const;
  void clear_shared() noexcept;

  PyObject* self_;  // Borrowed: this lives inside it.
  py::Ref loop_object_;
  Loop* loop_;
  bool closing_ = false;

 private:
  [[nodiscard]] bool close_file();

  py::Ref pipe_;
  py::Ref fileno_;  // pipe.fileno, when that is native code: cheap and harmless to ask.
  py::Ref protocol_;
  int fd_ = -1;
  os::FileKind kind_ = os::FileKind::other;
  bool opened_ = false;
  bool lost_scheduled_ = false;
};

class ReadPipeTransport final : public PipeTransport {
 public:
  using Base = AsyncioReadTransport;
  // What one read brings at most: asyncio's max_size, and all of the loop's scratch buffer.
  static constexpr std::size_t kReadMax = Loop::kScratchSize;

  using PipeTransport::PipeTransport;

  [[nodiscard]] bool start(const PipeSpec& spec);
  [[nodiscard]] bool is_reading() const noexcept { return !paused_ && !closing_; }
  [[nodiscard]] bool paused() const noexcept { return paused_; }

  // The Python methods; each new reference or null with the Python error set.
  [[nodiscard]] PyObject* add_reader(PyObject* callback);
  [[nodiscard]] PyObject* read_ready();
  [[nodiscard]] PyObject* pause_reading();
  [[nodiscard]] PyObject* resume_reading();
  [[nodiscard]] PyObject* close();
  [[nodiscard]] PyObject* call_connection_lost(PyObject* exception);
  [[nodiscard]] bool set_protocol(PyObject* protocol);

  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

 private:
  // A read at least this large makes the next one land in the bytes object itself.
  static constexpr std::size_t kDirectReadFrom = 16 * 1024;
  static constexpr std::size_t kDirectReadStep = 64 * 1024;

  [[nodiscard]] PyObject* deliver(py::Ref direct, std::size_t count);
  [[nodiscard]] py::Ref bytes_read(py::Ref direct, std::size_t count);
  [[nodiscard]] PyObject* end_of_file();
  [[nodiscard]] PyObject* fatal_error(int error);
  [[nodiscard]] bool close_with(PyObject* exception);

  StreamFeed feed_;  // In use while the protocol is asyncio's own for streams.
  std::size_t last_read_ = 0;
  bool protocol_seen_ = false;  // By feed_.
  bool paused_ = false;
};

class WritePipeTransport final : public PipeTransport {
 public:
  // The watermarks live in its slots, and its own methods judge them.
  using Base = AsyncioTransport;

  WritePipeTransport(PyObject* self, Loop& loop);
  ~WritePipeTransport();

  [[nodiscard]] bool start(const PipeSpec& spec);
  [[nodiscard]] std::size_t queued_bytes() const noexcept { return writer_.size_bytes(); }
  [[nodiscard]] std::uint32_t lost_count() const noexcept { return lost_count_; }

  // The Python methods; each new reference or null with the Python error set.
  [[nodiscard]] PyObject* add_reader(PyObject* callback);
  [[nodiscard]] PyObject* read_ready();
  [[nodiscard]] PyObject* write_ready();
  [[nodiscard]] PyObject* write(PyObject* data);
  [[nodiscard]] PyObject* write_eof();
  [[nodiscard]] PyObject* close();
  [[nodiscard]] PyObject* abort();
  [[nodiscard]] PyObject* call_connection_lost(PyObject* exception);
  [[nodiscard]] bool set_protocol(PyObject* protocol) {
    set_protocol_object(protocol);
    return true;
  }

  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

 private:
  [[nodiscard]] PyObject* queue_rest(OutgoingBytes& outgoing, std::size_t sent);
  [[nodiscard]] bool judge_high_water();
  [[nodiscard]] bool judge_low_water();
  [[nodiscard]] PyObject* count_lost_write();
  [[nodiscard]] PyObject* fatal_error(int error);
  [[nodiscard]] bool close_with(PyObject* exception);
  void drop_queue() noexcept;
  [[nodiscard]] Base& base() noexcept { return *reinterpret_cast<Base*>(self_); }

  PipeWriter writer_;
  // Writes that were lost, and one for the error that made them so.
  std::uint32_t lost_count_ = 0;
};

}  // namespace cpploop

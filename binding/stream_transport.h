#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "binding/address.h"
#include "binding/flow_limits.h"
#include "binding/loop.h"
#include "binding/py/buffer.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "binding/stream_feed.h"
#include "binding/transport_object.h"
#include "core/net/stream_socket.h"

namespace cpploop {

class TlsProtocol;

// What a transport is made from; all borrowed, null where absent or None.
struct TransportSpec {
  PyObject* sock = nullptr;  // The Python socket whose descriptor is taken over.
  PyObject* protocol = nullptr;
  PyObject* waiter = nullptr;
  PyObject* extra = nullptr;
  PyObject* server = nullptr;
  PyObject* context = nullptr;
};

// A transport over the Python socket `spec.sock` with descriptor `fd`. It schedules
// connection_made, the start of reading and the waiter, in asyncio's order. New reference or null;
// on failure the socket is the caller's still.
[[nodiscard]] PyObject* new_stream_transport(Loop& loop, int fd, const TransportSpec& spec);
// The same over a descriptor that no Python socket has seen; on failure it is closed.
[[nodiscard]] PyObject* accept_stream_transport(Loop& loop, UniqueFd fd,
                                                const os::SocketAddress& peer,
                                                const TransportSpec& spec);

// Server._attach() and ._detach(), whose arguments depend on the Python version. False with the
// Python error set.
[[nodiscard]] bool attach_to_server(ModuleState& state, PyObject* server, PyObject* transport);
[[nodiscard]] bool detach_from_server(ModuleState& state, PyObject* server, PyObject* transport);

// asyncio's _ensure_fd_no_transport(). False with RuntimeError set.
[[nodiscard]] bool ensure_no_transport(Loop& loop, int fd, PyObject* object);

// The native half of a stream transport: hears from the socket, speaks to the protocol. Belongs to
// the loop's thread.
class StreamTransport final : public StreamEvents {
 public:
  using Base = AsyncioTransport;

  StreamTransport(PyObject* self, Loop& loop);
  ~StreamTransport();
  StreamTransport(const StreamTransport&) = delete;
  StreamTransport& operator=(const StreamTransport&) = delete;

  // Takes over `fd`. False with the Python error set.
  [[nodiscard]] bool open(UniqueFd&& fd, const TransportSpec& spec, const os::SocketAddress* peer);
  // Gives an adopted descriptor back to its Python socket, when open() failed half-way.
  void give_back();

  [[nodiscard]] Loop& loop() noexcept { return *loop_; }
  [[nodiscard]] StreamSocket& socket() noexcept { return *socket_; }
  [[nodiscard]] bool opened() const noexcept { return socket_.has_value(); }
  [[nodiscard]] bool descriptor_open() const noexcept { return socket_ && socket_->fd() >= 0; }

  [[nodiscard]] int descriptor_number() const noexcept { return fd_; }

  // The Python methods; each new reference or null with the Python error set.
  [[nodiscard]] PyObject* write(PyObject* data);
  [[nodiscard]] PyObject* writelines(PyObject* list);
  // write() of bytes that are gone when it returns. False with the Python error set.
  [[nodiscard]] bool write_memory(const char* bytes, std::size_t size);
  [[nodiscard]] PyObject* write_eof();
  [[nodiscard]] PyObject* close();
  [[nodiscard]] PyObject* force_close(PyObject* exception);
  [[nodiscard]] PyObject* pause_reading();
  [[nodiscard]] PyObject* resume_reading();
  [[nodiscard]] PyObject* start_reading();
  [[nodiscard]] PyObject* get_extra_info(PyObject* name, PyObject* fallback);
  [[nodiscard]] PyObject* extra_dict();
  [[nodiscard]] bool set_protocol(PyObject* protocol);
  [[nodiscard]] PyObject* protocol() const noexcept { return protocol_.get(); }
  [[nodiscard]] FlowLimits& limits() noexcept { return limits_; }
  [[nodiscard]] PyObject* server() const noexcept { return server_.get(); }
  // Null before reading began.
  [[nodiscard]] PyObject* read_context() const noexcept { return read_context_.get(); }
  [[nodiscard]] PyObject* python_socket();
  [[nodiscard]] PyObject* call_connection_lost(PyObject* exception);
  [[nodiscard]] PyObject* make_empty_waiter();
  void reset_empty_waiter() noexcept { empty_waiter_.reset(); }
  // While lent, the descriptor may be used beside the transport (sendfile waits for it to be
  // writable).
  void lend(bool lent) noexcept { lent_ = lent; }
  [[nodiscard]] bool lent() const noexcept { return lent_; }
  [[nodiscard]] bool paused() const noexcept { return paused_; }
  void fatal_error(py::PendingError error, const char* message);
  void finalize();

  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

  // StreamEvents.
  void hold() noexcept override;
  void release() noexcept override;
  // Who else holds the Python socket can close it.
  [[nodiscard]] bool shares_descriptor() noexcept override {
    return python_socket_ && Py_REFCNT(python_socket_.get()) > (socket_told_ ? 2 : 1);
  }
  [[nodiscard]] ReceiveBuffer receive_buffer() override;
  void on_bytes(std::size_t count) override;
  void on_end_of_stream() override;
  void on_receive_error(int error) override;
  void on_send_error(int error) override;
  void on_shutdown_error(int error) override;
  void on_pause_writing() override;
  void on_resume_writing() override;
  void on_drained() override;
  void on_closed_after_flush() override;
  void drop_owner(WriteQueue::Owner owner) noexcept override;

 private:
  // A read at least this large makes the next one land in the bytes object itself.
  static constexpr std::size_t kDirectReadFrom = 16 * 1024;
  // What a read that is copied out may bring: less than the loop's whole buffer, because from here
  // on a second copy costs more than a larger object.
  static constexpr std::size_t kCopiedReadMax = 64 * 1024;
  static constexpr std::size_t kTlsReadMax = 128 * 1024;

  [[nodiscard]] bool refuse_write(const char* function, const char* doing);
  [[nodiscard]] PyObject* count_lost_write();
  void queue_object(PyObject* bytes, std::size_t offset);
  void queue_parts(const std::vector<py::Ref>& parts);
  [[nodiscard]] ReceiveBuffer protocol_buffer();
  [[nodiscard]] bool bind_protocol();
  [[nodiscard]] py::Ref received_argument(std::size_t count);
  [[nodiscard]] bool ask_for_names();
  // True when the bytes in the scratch buffer went the short way to a stream reader.
  [[nodiscard]] bool feed_reader(std::size_t count);
  void feed_tls(std::size_t count);
  void end_write();
  void tell_flow_control(PyObject* name, const char* failure);
  void close_descriptor() noexcept;
  void note_wait(bool waited);
  void log_debug(const char* format);
  [[nodiscard]] py::Ref new_context();

  PyObject* self_;  // Borrowed: this lives inside it.
  py::Ref loop_object_;
  Loop* loop_;
  std::optional<StreamSocket> socket_;
  py::Ref protocol_;
  py::Ref python_socket_;
  py::Ref server_;
  py::Ref context_;       // The one asked for at creation (Python 3.15), or none.
  py::Ref read_context_;  // Where data_received() and its kin run.
  // Where resume_writing() runs: that of the write the kernel could not take.
  py::Ref write_context_;
  FlowLimits limits_;
  py::Ref empty_waiter_;
  py::Ref on_data_;  // protocol.data_received, or buffer_updated of a BufferedProtocol.
  py::Ref get_buffer_;
  StreamFeed feed_;             // In use while the protocol is asyncio's own for streams.
  TlsProtocol* tls_ = nullptr;  // The protocol, if it is our TLS.
  py::Ref pending_bytes_;       // What a direct read fills.
  py::BufferView pending_view_;
  LazyAddress local_address_;
  LazyAddress peer_address_;
  std::size_t last_read_ = 0;
  int fd_ = -1;  // The number, also after the descriptor was closed (repr shows it).
  bool buffered_ = false;
  bool protocol_connected_ = false;
  bool paused_ = false;
  bool lent_ = false;
  bool socket_told_ = false;  // The TransportSocket of get_extra_info() holds it, too.
  bool retrying_ = false;     // Inside a writelines() that tries the kernel again.
};

// `object` must be a stream transport of ours.
[[nodiscard]] inline StreamTransport& transport_of(PyObject* object) noexcept {
  return native_of<StreamTransport>(object);
}

}  // namespace cpploop

#pragma once

#include <cstdint>
#include <optional>

#include "binding/address_cache.h"
#include "binding/flow_limits.h"
#include "binding/loop.h"
#include "binding/py/python.h"
#include "binding/py/ref.h"
#include "binding/transport_object.h"
#include "core/net/datagram_socket.h"

namespace cpploop {

// What a datagram transport is made from; all borrowed, null where absent or None.
struct DatagramSpec {
  PyObject* sock = nullptr;  // The Python socket whose descriptor is taken over.
  PyObject* protocol = nullptr;
  PyObject* address = nullptr;  // The one peer that may be sent to.
  PyObject* waiter = nullptr;
  PyObject* extra = nullptr;
};

// A transport over the Python socket `spec.sock` with descriptor `fd`. It schedules
// connection_made, the start of reading and the waiter, in asyncio's order. New reference or null;
// on failure the socket is the caller's still.
[[nodiscard]] PyObject* new_datagram_transport(Loop& loop, int fd, const DatagramSpec& spec);

// The native half of a datagram transport: hears from the socket, speaks to the protocol. Belongs
// to the loop's thread.
class DatagramTransport final : public DatagramEvents {
 public:
  using Base = AsyncioTransport;

  DatagramTransport(PyObject* self, Loop& loop);
  ~DatagramTransport();
  DatagramTransport(const DatagramTransport&) = delete;
  DatagramTransport& operator=(const DatagramTransport&) = delete;

  // Takes over `fd`. False with the Python error set.
  [[nodiscard]] bool open(UniqueFd&& fd, const DatagramSpec& spec);
  // Gives the descriptor back to its Python socket, when open() failed half-way.
  void give_back();

  [[nodiscard]] Loop& loop() noexcept { return *loop_; }
  [[nodiscard]] DatagramSocket& socket() noexcept { return *socket_; }
  [[nodiscard]] bool opened() const noexcept { return socket_.has_value(); }
  [[nodiscard]] bool descriptor_open() const noexcept { return socket_ && socket_->fd() >= 0; }
  [[nodiscard]] int descriptor_number() const noexcept { return fd_; }

  // The Python methods; each new reference or null with the Python error set.
  [[nodiscard]] PyObject* sendto(PyObject* data, PyObject* address);
  [[nodiscard]] PyObject* close();
  [[nodiscard]] PyObject* force_close(PyObject* exception);
  [[nodiscard]] PyObject* pause_reading();
  [[nodiscard]] PyObject* resume_reading();
  [[nodiscard]] PyObject* start_reading();
  [[nodiscard]] PyObject* get_extra_info(PyObject* name, PyObject* fallback);
  [[nodiscard]] PyObject* extra() const noexcept;  // Borrowed.
  [[nodiscard]] bool set_protocol(PyObject* protocol);
  [[nodiscard]] PyObject* protocol() const noexcept { return protocol_.get(); }
  [[nodiscard]] FlowLimits& limits() noexcept { return limits_; }
  [[nodiscard]] PyObject* address() const noexcept { return address_.get(); }
  [[nodiscard]] PyObject* python_socket() const noexcept { return python_socket_.get(); }
  [[nodiscard]] PyObject* call_connection_lost(PyObject* exception);
  void finalize();

  [[nodiscard]] int traverse(visitproc visit, void* arg) const;
  void clear() noexcept;

  // DatagramEvents.
  void hold() noexcept override;
  void release() noexcept override;
  void on_datagram(const Datagram& datagram) override;
  void on_receive_error(int error) override;
  void on_send_error(int error) override;
  [[nodiscard]] DatagramSent send_addressed(QueuedDatagram::Owner owner) override;
  void on_pause_writing() override;
  void on_resume_writing() override;
  void on_closed_after_flush() override;
  void drop_owner(QueuedDatagram::Owner owner) noexcept override;

 private:
  // What became of one attempt to send; after `failed` the Python error is set.
  enum class Attempt { sent, full, failed };

  [[nodiscard]] bool fill_extra(PyObject* given);
  [[nodiscard]] bool check_address(PyObject*& address);
  [[nodiscard]] PyObject* count_lost_write();
  [[nodiscard]] Attempt attempt(PyObject* data, PyObject* address);
  [[nodiscard]] Attempt attempt_natively(PyObject* data, const os::SocketAddress* to);
  [[nodiscard]] Attempt attempt_by_python(PyObject* data, PyObject* address);
  [[nodiscard]] PyObject* queue(PyObject* data, PyObject* address);
  [[nodiscard]] bool send_failed();
  [[nodiscard]] bool tell_error(py::PendingError error);
  void tell_flow_control(PyObject* name, const char* failure);
  void fatal_error(py::PendingError error, const char* message);
  void close_descriptor() noexcept;
  void log_debug(const char* format);

  PyObject* self_;  // Borrowed: this lives inside it.
  py::Ref loop_object_;
  Loop* loop_;
  std::optional<DatagramSocket> socket_;
  py::Ref protocol_;
  py::Ref python_socket_;
  py::Ref address_;            // The address that sendto() is held to, or null.
  py::Ref allowed_addresses_;  // (None, that address)
  py::Ref read_context_;       // Where datagram_received() runs.
  py::Ref write_context_;      // Where resume_writing() and its kin run.
  py::Ref on_datagram_;        // protocol.datagram_received
  AddressCache addresses_;
  FlowLimits limits_;
  int fd_ = -1;  // The number, also after the descriptor was closed (repr shows it).
  int family_ = 0;
  bool connected_ = false;
  bool protocol_connected_ = false;
};

// `object` must be a datagram transport of ours.
[[nodiscard]] inline DatagramTransport& datagram_transport_of(PyObject* object) noexcept {
  return native_of<DatagramTransport>(object);
}

}  // namespace cpploop

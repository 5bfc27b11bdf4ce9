#pragma once

#include <cstddef>

#include "binding/py/python.h"
#include "binding/py/ref.h"

namespace cpploop {

// Every name the binding looks up or passes by keyword, interned once per interpreter.
// clang-format off
#define CPPLOOP_NAMES(X) \
  X(Future) X(Task) X(_HAS_IPv6) X(_accept) X(_accept_exhausted) X(_add_reader) X(_add_writer) X(_attach) \
  X(_buffer) X(_call_connection_lost) X(_call_eof_received) \
  X(_check_callback) X(_connect_sock) X(_control_app_writing) X(_control_ssl_reading) X(_detach) X(_do_flush) \
  X(_do_handshake) X(_do_read) X(_do_shutdown) X(_ensure_fd_no_transport) X(_ensure_resolved) \
  X(_eof) X(_fatal_error) X(_ipaddr_info) X(_limit) X(_log_closed_pipe_write) X(_log_closed_write) \
  X(_maybe_pause_protocol) X(_maybe_resume_protocol) X(_pause_reader) X(_read_ready) \
  X(_refuse_data) X(_refuse_datagram) X(_refuse_pipe_data) X(_remove_reader) X(_remove_writer) \
  X(_run_unless_cancelled) X(_sslobj) X(_start_reading) X(_start_shutdown) X(_stream_reader_wr) \
  X(_transport_socket) X(_unclosed) X(_waiter) X(_wakeup_waiter) X(_write_appdata) \
  X(_write_ready) X(accept) X(addr) X(address) X(append) X(appendleft) X(buffer_updated) \
  X(call_at) X(call_exception_handler) X(call_soon) X(callback) X(cancelled) X(close) X(connect) \
  X(connection_lost) X(connection_made) X(context) X(create_future) X(data) X(data_received) \
  X(datagram_received) X(delay) X(detach) X(done) X(eager_start) X(eof_received) X(error_received) X(exception) \
  X(extra) X(family) X(fd) X(feed_data) X(fileno) X(get_buffer) X(getblocking) X(getsockopt) \
  X(gettimeout) X(high) X(inet_pton) X(list_of_data) X(loop) X(low) X(message) X(name) X(pause_writing) \
  X(peername) X(pending) X(pipe) X(proto) X(protocol) X(read) X(recv) X(recv_into) X(recvfrom) \
  X(recvfrom_into) X(remove_reader) X(remove_writer) X(resume_writing) X(send) X(sendto) \
  X(server) X(set_exception) X(set_result) X(setblocking) X(sock) X(socket) X(sockname) X(throw) \
  X(time) X(tobytes) X(transport) X(type) X(waiter) X(when) X(write)

// What asyncio's sock_*() use of a socket object, and what decides whether it is a plain one.
#define CPPLOOP_SOCKET_MEMBERS(X) \
  X(_accept) X(accept) X(connect) X(family) X(fileno) X(getblocking) X(getsockopt) X(gettimeout) \
  X(proto) X(recv) X(recv_into) X(recvfrom) X(recvfrom_into) X(send) X(sendto) X(setblocking) \
  X(type)
// clang-format on

#define CPPLOOP_ENUMERATE(name) name,
enum class SocketMember : int { CPPLOOP_SOCKET_MEMBERS(CPPLOOP_ENUMERATE) count };
#undef CPPLOOP_ENUMERATE
inline constexpr int kSocketMemberCount = static_cast<int>(SocketMember::count);

// What the running asyncio does with datagrams that its releases do differently.
struct DatagramRules {
  std::size_t header = 0;  // What a queued datagram counts beside its bytes.
  bool sends_empty = true;
};

// What the binding keeps per interpreter: its own types, the asyncio objects it builds on, names.
struct ModuleState {
  PyObject* module = nullptr;  // Borrowed: this is its state.

  // Own types.
  PyTypeObject* loop_type = nullptr;
  PyTypeObject* handle_type = nullptr;
  PyTypeObject* timer_handle_type = nullptr;
  PyTypeObject* threadsafe_handle_type = nullptr;   // Null before Python 3.14.
  PyTypeObject* stream_transport_base = nullptr;    // The native type...
  PyTypeObject* stream_transport_type = nullptr;    // ...and its child with __dict__ and weakrefs.
  PyTypeObject* datagram_transport_base = nullptr;  // The same two again.
  PyTypeObject* datagram_transport_type = nullptr;
  DatagramRules datagram_rules;
  PyTypeObject* listener_type = nullptr;
  PyTypeObject* read_pipe_type = nullptr;
  PyTypeObject* write_pipe_type = nullptr;
  PyTypeObject* sock_operation_type = nullptr;
  PyTypeObject* tls_protocol_base = nullptr;  // The native type...
  PyTypeObject* tls_protocol_type = nullptr;  // ...and the edge's class, once it is defined.
  PyTypeObject* tls_transport_base = nullptr;

  // asyncio's.
  // The modules' namespaces: programs and tests exchange asyncio.tasks.Task and futures.Future.
  PyObject* futures_dict = nullptr;
  PyObject* tasks_dict = nullptr;
  PyObject* buffered_protocol_type = nullptr;
  PyObject* stream_reader_protocol_type = nullptr;
  PyObject* stream_reader_type = nullptr;
  // Their methods as they were at import, to notice when a program replaces one.
  PyObject* original_data_received = nullptr;
  PyObject* original_feed_data = nullptr;
  PyObject* original_wakeup_waiter = nullptr;
  PyObject* extract_stack = nullptr;                // asyncio.format_helpers.extract_stack
  PyObject* set_result_unless_cancelled = nullptr;  // asyncio.futures'
  PyObject* base_create_task = nullptr;             // asyncio.BaseEventLoop.create_task
  // How asyncio finds out that a host is an address, as it was at import: the namespaces that it
  // looks into, and what is there. And the two methods of its loop's that connecting goes through.
  PyObject* base_events_dict = nullptr;
  PyObject* socket_module = nullptr;
  PyObject* original_ipaddr_info = nullptr;
  PyObject* original_inet_pton = nullptr;
  PyObject* original_ensure_resolved = nullptr;
  PyObject* original_connect_sock = nullptr;
  // The ssl module's types, and the members of asyncio's SSLProtocolState in the order of
  // TlsProtocol::State.
  PyObject* ssl_object_type = nullptr;
  PyObject* ssl_socket_type = nullptr;
  PyObject* memory_bio_type = nullptr;
  PyObject* ssl_want_read_error = nullptr;
  PyObject* ssl_syscall_error = nullptr;
  PyObject* tls_states[5] = {};
  PyObject* loop_keyword = nullptr;             // ("loop",)
  PyObject* task_keywords = nullptr;            // The last create_task() call's keyword names,
  PyObject* task_keywords_with_loop = nullptr;  // and those with "loop" behind them.
  PyObject* selector_loop_type = nullptr;       // asyncio.selector_events.BaseSelectorEventLoop

  // The socket module's: socket.socket, its members as they were at import, the version of the type
  // for which they were last seen to be so (0: none), and two fields of the C class below it.
  PyTypeObject* socket_type = nullptr;
  PyObject* socket_members[kSocketMemberCount] = {};
  unsigned int socket_type_version = 0;
  PyObject* socket_family_field = nullptr;
  PyObject* socket_type_field = nullptr;
  // Whether a socket's number can be read where socket_number() looks.
  bool reads_socket_numbers = false;

  // Whether handles may share contexts; see SharedContexts.
  bool shares_contexts = false;

  // The edge's helpers for what is rare and reads better in Python (cpploop._support).
  PyObject* support = nullptr;

#define CPPLOOP_DECLARE_NAME(name) PyObject* str_##name = nullptr;
  CPPLOOP_NAMES(CPPLOOP_DECLARE_NAME)
#undef CPPLOOP_DECLARE_NAME
  PyObject* str_default = nullptr;  // "default", which is a C++ keyword.

  // Until the module is cleared: afterwards nothing is put on the lists below.
  bool alive = true;
  // Dead handles, kept to be used again (GIL builds only; a free-threaded build's allocator is per
  // thread, a shared list would need a lock). New ones count towards the next collection, which
  // then looks at all of a burst's: reusing them halves what a large burst of call_soon() costs.
  // One list for each HandleKind, linked through the objects.
  struct FreeHandles {
    PyObject* first = nullptr;
    int count = 0;
  };
  static constexpr int kFreeHandlesMax = 16 * 1024;
  // An idle loop gives back what is more than this, by and by.
  static constexpr int kFreeHandlesKept = 256;
  FreeHandles free_handles[3];
};

[[nodiscard]] ModuleState* module_state(PyObject* module) noexcept;
// For methods that have only a type of ours (or a subtype) at hand. Never null for those.
[[nodiscard]] ModuleState* module_state_of(PyTypeObject* type) noexcept;

// Each adds its types to the module's state. False with the Python error set.
[[nodiscard]] bool add_handle_types(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_loop_type(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_stream_transport_type(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_datagram_transport_type(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_listener_type(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_pipe_transport_types(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_sock_operation_type(PyObject* module, ModuleState& state);
[[nodiscard]] bool add_tls_types(PyObject* module, ModuleState& state);
#ifdef CPPLOOP_FAULTS
[[nodiscard]] bool add_fault_functions(PyObject* module);
#endif

}  // namespace cpploop

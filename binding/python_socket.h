#pragma once

#include "binding/module_state.h"
#include "binding/py/python.h"
#include "core/os/unique_fd.h"

// What the binding knows of Python's own socket objects.
namespace cpploop {

// Fetches what module_state.h keeps of the socket module. False with the Python error set.
[[nodiscard]] bool import_sockets(ModuleState& state);

// Whether `object` is a socket.socket, or of a child class, all of whose methods that asyncio's
// sock_*() would call are the socket module's own: not replaced on the class, the instance or by a
// patch of the module. Runs no code of the user's and leaves no error set.
[[nodiscard]] bool is_plain_socket(ModuleState& state, PyObject* object);

// The following are for plain sockets, which cannot fail at these short of memory running out.

// The descriptor; -1 for a closed socket. Never an error set.
[[nodiscard]] int socket_descriptor(ModuleState& state, PyObject* sock) noexcept;
// Whether it is `fd` still.
[[nodiscard]] bool has_descriptor(ModuleState& state, PyObject* sock, int fd) noexcept;
// Where the object keeps it: to be looked at before each read and each send, by whoever shares the
// descriptor. Null for no socket, and where it is not `fd` that is found there.
[[nodiscard]] int* shared_number(ModuleState& state, PyObject* sock, int fd) noexcept;
// Whether its time-out is 0, as setblocking(False) leaves it. Never an error set.
[[nodiscard]] bool is_non_blocking(ModuleState& state, PyObject* sock) noexcept;
// Its address family; -1 if that cannot be told. Never an error set.
[[nodiscard]] int socket_family(ModuleState& state, PyObject* sock) noexcept;
// Its kind and its protocol, alike.
[[nodiscard]] int socket_kind(ModuleState& state, PyObject* sock) noexcept;
[[nodiscard]] int socket_proto(ModuleState& state, PyObject* sock) noexcept;

// A non-blocking socket.socket over `fd`, of the kind of the listening socket it was accepted from,
// as that one's accept() makes it. New reference or null; the descriptor is the object's in any
// case.
[[nodiscard]] PyObject* accepted_socket(ModuleState& state, PyObject* listener, UniqueFd fd);

}  // namespace cpploop

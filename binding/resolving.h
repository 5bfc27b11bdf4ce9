#pragma once

#include "binding/loop.h"
#include "binding/module_state.h"
#include "binding/py/python.h"

// Addresses written out, on the way of asyncio's from a host and a port to a connected socket. Its
// own code, which is asked for all other hosts, decides there that nothing is to be resolved; here
// that is found out without it, while nobody has replaced a part of it.
namespace cpploop {

// Fetches what module_state.h keeps of asyncio's steps. False with the Python error set.
[[nodiscard]] bool import_resolving(ModuleState& state);

// Whether a method of that way is another on this loop than asyncio's. Leaves no error set.
[[nodiscard]] bool replaces_resolving(PyObject* loop, ModuleState& state);

// What loop._ensure_resolved((host, port)) would tell create_connection() to connect to, if `host`
// is an address that inet_pton() reads and `port` a number: (host, port), or (host, port, 0, 0).
// New reference; None where only asyncio's own code is certain.
[[nodiscard]] PyObject* literal_destination(Loop& loop, PyObject* host, PyObject* port);

// Whether loop._ensure_resolved() for the plain socket `sock` would give back `address` as it is.
// Leaves no error set.
[[nodiscard]] bool is_resolved(Loop& loop, PyObject* sock, PyObject* address);

}  // namespace cpploop

// The module cpploop._native.

#include "binding/handle.h"
#include "binding/module_state.h"
#include "binding/py/guard.h"
#include "binding/py/ref.h"
#include "binding/python_socket.h"
#include "binding/resolving.h"
#include "core/backend/choice.h"

#ifndef CPPLOOP_VERSION
#error "CPPLOOP_VERSION must come from the build"
#endif

namespace cpploop {
namespace {

using py::Ref;

[[nodiscard]] bool intern_names(ModuleState& state) {
#define CPPLOOP_INTERN(name)                            \
  state.str_##name = PyUnicode_InternFromString(#name); \
  if (state.str_##name == nullptr) {                    \
    return false;                                       \
  }
  CPPLOOP_NAMES(CPPLOOP_INTERN)
#undef CPPLOOP_INTERN
  state.str_default = PyUnicode_InternFromString("default");
  return state.str_default != nullptr;
}

[[nodiscard]] PyObject* import_attribute(const char* module_name, const char* name) {
  Ref module = Ref::steal(PyImport_ImportModule(module_name));
  return module ? PyObject_GetAttrString(module.get(), name) : nullptr;
}

[[nodiscard]] bool import_asyncio(ModuleState& state) {
  state.futures_dict = import_attribute("asyncio.futures", "__dict__");
  state.tasks_dict = import_attribute("asyncio.tasks", "__dict__");
  state.buffered_protocol_type = import_attribute("asyncio", "BufferedProtocol");
  state.extract_stack = import_attribute("asyncio.format_helpers", "extract_stack");
  state.set_result_unless_cancelled =
      import_attribute("asyncio.futures", "_set_result_unless_cancelled");
  state.stream_reader_protocol_type = import_attribute("asyncio", "StreamReaderProtocol");
  state.stream_reader_type = import_attribute("asyncio", "StreamReader");
  if (state.stream_reader_protocol_type == nullptr || state.stream_reader_type == nullptr) {
    return false;
  }
  state.original_data_received =
      PyObject_GetAttr(state.stream_reader_protocol_type, state.str_data_received);
  state.original_feed_data = PyObject_GetAttr(state.stream_reader_type, state.str_feed_data);
  state.original_wakeup_waiter =
      PyObject_GetAttr(state.stream_reader_type, state.str__wakeup_waiter);
  state.selector_loop_type = import_attribute("asyncio.selector_events", "BaseSelectorEventLoop");
  state.support = PyImport_ImportModule("cpploop._support");
  return state.futures_dict != nullptr && state.tasks_dict != nullptr &&
         state.buffered_protocol_type != nullptr && state.extract_stack != nullptr &&
         state.set_result_unless_cancelled != nullptr && state.support != nullptr &&
         state.original_data_received != nullptr && state.original_feed_data != nullptr &&
         state.original_wakeup_waiter != nullptr && state.selector_loop_type != nullptr &&
         import_sockets(state) && import_resolving(state);
}

[[nodiscard]] PyObject* compiler_name() {
#if defined(__clang__)
  return PyUnicode_FromString("clang " __clang_version__);
#else
  return PyUnicode_FromString("gcc " __VERSION__);
#endif
}

// What the build and this process have settled on; build_info() of the package shows it.
PyObject* native_build_info(PyObject*, PyObject*) {
  Ref compiler = Ref::steal(compiler_name());
  if (!compiler) {
    return nullptr;
  }
  return Py_BuildValue("{s:s, s:O, s:s, s:O, s:s, s:s, s:O, s:s}", "version", CPPLOOP_VERSION,
                       "compiler", compiler.get(), "build_type", CPPLOOP_BUILD_TYPE, "lto",
                       CPPLOOP_LTO ? Py_True : Py_False, "pgo", CPPLOOP_PGO, "python", PY_VERSION,
                       "free_threaded", py::kFreeThreaded ? Py_True : Py_False, "timed_wait",
                       timed_wait());
}

PyObject* native_io_uring_refusal(PyObject*, PyObject*) {
  return py::guard([]() -> PyObject* { return PyUnicode_FromString(io_uring_refusal().c_str()); });
}

PyObject* native_backends(PyObject*, PyObject*) {
  return py::guard([]() -> PyObject* {
    const std::span<const BackendChoice> built = backends_built();
    Ref names = Ref::steal(PyTuple_New(static_cast<Py_ssize_t>(built.size())));
    for (std::size_t i = 0; names && i < built.size(); ++i) {
      PyObject* name = PyUnicode_FromString(name_of(built[i]));
      if (name == nullptr) {
        return nullptr;
      }
      PyTuple_SET_ITEM(names.get(), static_cast<Py_ssize_t>(i), name);
    }
    return names.release();
  });
}

PyObject* native_process_exits(PyObject*, PyObject*) {
  py::g_process_exiting.store(true);
  return py::none();
}

// Registered with atexit, whose functions run before the interpreter begins to end other threads.
PyMethodDef process_exits_def = {"_process_exits", native_process_exits, METH_NOARGS, nullptr};

[[nodiscard]] bool watch_for_exit() {
  Ref function = Ref::steal(PyCFunction_New(&process_exits_def, nullptr));
  Ref register_function = Ref::steal(import_attribute("atexit", "register"));
  Ref result = function && register_function
                   ? Ref::steal(PyObject_CallOneArg(register_function.get(), function.get()))
                   : Ref();
  return static_cast<bool>(result);
}

PyMethodDef module_methods[] = {
    {"build_info", native_build_info, METH_NOARGS,
     "build_info($module, /)\n--\n\nWhat the build is and what it uses in this process."},
    {"_io_uring_refusal", native_io_uring_refusal, METH_NOARGS,
     "_io_uring_refusal($module, /)\n--\n\nWhy no ring can be had in this process, or an empty "
     "string."},
    {"_backends", native_backends, METH_NOARGS,
     "_backends($module, /)\n--\n\nThe ways to the kernel that this build has; the first is the "
     "default."},
    {nullptr, nullptr, 0, nullptr},
};

int module_exec(PyObject* module) {
  auto* state = new (PyModule_GetState(module)) ModuleState();
  state->module = module;
  if (!watch_for_exit() || !intern_names(*state) || !import_asyncio(*state) ||
      !add_handle_types(module, *state) || !add_loop_type(module, *state) ||
      !add_stream_transport_type(module, *state) || !add_datagram_transport_type(module, *state) ||
      !add_listener_type(module, *state) || !add_pipe_transport_types(module, *state) ||
      !add_sock_operation_type(module, *state) || !add_tls_types(module, *state)) {
    return -1;
  }
#ifdef CPPLOOP_FAULTS
  if (!add_fault_functions(module)) {
    return -1;
  }
#endif
  return PyModule_AddStringConstant(module, "__version__", CPPLOOP_VERSION);
}

int module_traverse(PyObject* module, visitproc visit, void* arg) {
  auto* state = static_cast<ModuleState*>(PyModule_GetState(module));
  if (state == nullptr) {
    return 0;
  }
  Py_VISIT(state->loop_type);
  Py_VISIT(state->handle_type);
  Py_VISIT(state->timer_handle_type);
  Py_VISIT(state->threadsafe_handle_type);
  Py_VISIT(state->stream_transport_base);
  Py_VISIT(state->stream_transport_type);
  Py_VISIT(state->datagram_transport_base);
  Py_VISIT(state->datagram_transport_type);
  Py_VISIT(state->listener_type);
  Py_VISIT(state->read_pipe_type);
  Py_VISIT(state->write_pipe_type);
  Py_VISIT(state->sock_operation_type);
  Py_VISIT(state->selector_loop_type);
  Py_VISIT(state->socket_type);
  for (PyObject*& member : state->socket_members) {
    Py_VISIT(member);
  }
  Py_VISIT(state->socket_family_field);
  Py_VISIT(state->socket_type_field);
  Py_VISIT(state->tls_protocol_base);
  Py_VISIT(state->tls_protocol_type);
  Py_VISIT(state->tls_transport_base);
  Py_VISIT(state->ssl_object_type);
  Py_VISIT(state->ssl_socket_type);
  Py_VISIT(state->memory_bio_type);
  Py_VISIT(state->ssl_want_read_error);
  Py_VISIT(state->ssl_syscall_error);
  for (PyObject* member : state->tls_states) {
    Py_VISIT(member);
  }
  Py_VISIT(state->futures_dict);
  Py_VISIT(state->tasks_dict);
  Py_VISIT(state->buffered_protocol_type);
  Py_VISIT(state->stream_reader_protocol_type);
  Py_VISIT(state->stream_reader_type);
  Py_VISIT(state->original_data_received);
  Py_VISIT(state->original_feed_data);
  Py_VISIT(state->original_wakeup_waiter);
  Py_VISIT(state->extract_stack);
  Py_VISIT(state->set_result_unless_cancelled);
  Py_VISIT(state->base_create_task);
  Py_VISIT(state->base_events_dict);
  Py_VISIT(state->socket_module);
  Py_VISIT(state->original_ipaddr_info);
  Py_VISIT(state->original_inet_pton);
  Py_VISIT(state->original_ensure_resolved);
  Py_VISIT(state->original_connect_sock);
  Py_VISIT(state->support);
  return 0;
}

int module_clear(PyObject* module) {
  auto* state = static_cast<ModuleState*>(PyModule_GetState(module));
  if (state == nullptr) {
    return 0;
  }
  // Before the types go: the dead handles' memory is measured by them.
  state->alive = false;
  free_handle_lists(*state);
  return 0;
}

void module_free(void* module) {
  auto* state = static_cast<ModuleState*>(PyModule_GetState(static_cast<PyObject*>(module)));
  if (state == nullptr) {
    return;
  }
  state->alive = false;
  free_handle_lists(*state);
  // Objects of our types keep the module alive, so none is left that could need what goes here.
  Py_CLEAR(state->loop_type);
  Py_CLEAR(state->handle_type);
  Py_CLEAR(state->timer_handle_type);
  Py_CLEAR(state->threadsafe_handle_type);
  Py_CLEAR(state->stream_transport_type);
  Py_CLEAR(state->stream_transport_base);
  Py_CLEAR(state->datagram_transport_type);
  Py_CLEAR(state->datagram_transport_base);
  Py_CLEAR(state->listener_type);
  Py_CLEAR(state->read_pipe_type);
  Py_CLEAR(state->write_pipe_type);
  Py_CLEAR(state->sock_operation_type);
  Py_CLEAR(state->selector_loop_type);
  Py_CLEAR(state->socket_type);
  for (PyObject*& member : state->socket_members) {
    Py_CLEAR(member);
  }
  Py_CLEAR(state->socket_family_field);
  Py_CLEAR(state->socket_type_field);
  Py_CLEAR(state->tls_protocol_base);
  Py_CLEAR(state->tls_protocol_type);
  Py_CLEAR(state->tls_transport_base);
  Py_CLEAR(state->ssl_object_type);
  Py_CLEAR(state->ssl_socket_type);
  Py_CLEAR(state->memory_bio_type);
  Py_CLEAR(state->ssl_want_read_error);
  Py_CLEAR(state->ssl_syscall_error);
  for (PyObject*& member : state->tls_states) {
    Py_CLEAR(member);
  }
  Py_CLEAR(state->futures_dict);
  Py_CLEAR(state->tasks_dict);
  Py_CLEAR(state->buffered_protocol_type);
  Py_CLEAR(state->stream_reader_protocol_type);
  Py_CLEAR(state->stream_reader_type);
  Py_CLEAR(state->original_data_received);
  Py_CLEAR(state->original_feed_data);
  Py_CLEAR(state->original_wakeup_waiter);
  Py_CLEAR(state->extract_stack);
  Py_CLEAR(state->set_result_unless_cancelled);
  Py_CLEAR(state->base_create_task);
  Py_CLEAR(state->base_events_dict);
  Py_CLEAR(state->socket_module);
  Py_CLEAR(state->original_ipaddr_info);
  Py_CLEAR(state->original_inet_pton);
  Py_CLEAR(state->original_ensure_resolved);
  Py_CLEAR(state->original_connect_sock);
  Py_CLEAR(state->loop_keyword);
  Py_CLEAR(state->task_keywords);
  Py_CLEAR(state->task_keywords_with_loop);
  Py_CLEAR(state->support);
#define CPPLOOP_CLEAR_NAME(name) Py_CLEAR(state->str_##name);
  CPPLOOP_NAMES(CPPLOOP_CLEAR_NAME)
#undef CPPLOOP_CLEAR_NAME
  Py_CLEAR(state->str_default);
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(module_exec)},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "cpploop._native", "The engine of cpploop, bound to Python.",
    sizeof(ModuleState),   module_methods,    module_slots,
    module_traverse,       module_clear,      module_free,
};

}  // namespace

ModuleState* module_state(PyObject* module) noexcept {
  return static_cast<ModuleState*>(PyModule_GetState(module));
}

ModuleState* module_state_of(PyTypeObject* type) noexcept {
  PyObject* module = PyType_GetModuleByDef(type, &module_def);
  return module == nullptr ? nullptr : module_state(module);
}

}  // namespace cpploop

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&cpploop::module_def); }

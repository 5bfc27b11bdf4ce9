// The Python type _native.Listener: a server socket's native accept path.

#include "core/net/listener.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <optional>

#include "binding/loop.h"
#include "binding/py/args.h"
#include "binding/py/context.h"
#include "binding/py/guard.h"
#include "binding/py/python.h"
#include "binding/python_socket.h"
#include "binding/stream_transport.h"

namespace cpploop {
namespace {

using py::PendingError;
using py::Ref;

// Accepts for one listening socket of a server. Plain connections become transports here; with a
// `tls_accept` callable each accepted Python socket and its peer's address go there instead.
// Belongs to the loop's thread.
class ServerListener final : public ListenerEvents {
 public:
  ServerListener(PyObject* self, Loop& loop) noexcept
      : self_(self), loop_object_(Ref::borrow(loop.self())), loop_(loop) {}

  // Throws std::bad_alloc. False with the Python error set.
  [[nodiscard]] bool start(PyObject* sock, int fd, PyObject* factory, PyObject* server,
                           PyObject* tls_accept, PyObject* context, std::uint16_t batch) {
    sock_ = Ref::borrow(sock);
    factory_ = Ref::borrow(factory);
    server_ = Ref::borrow(server);
    tls_accept_ = Ref::borrow(tls_accept);
    given_context_ = context != Py_None ? Ref::borrow(context) : Ref();
    // asyncio's reader handle: accepting runs in a copy of the context of the start.
    context_ = Ref::steal(PyContext_CopyCurrent());
    if (!context_) {
      return false;
    }
    fd_ = fd;
    listener_.emplace(loop_.engine().backend(), fd, batch, *this);
    return true;
  }
  void stop() noexcept {
    if (listener_) {
      listener_->stop();
    }
  }
  void resume() noexcept {
    if (listener_ && !loop_.closed()) {
      listener_->resume();
    }
  }

  [[nodiscard]] int traverse(visitproc visit, void* arg) const {
    Py_VISIT(loop_object_.get());
    Py_VISIT(sock_.get());
    Py_VISIT(factory_.get());
    Py_VISIT(server_.get());
    Py_VISIT(tls_accept_.get());
    Py_VISIT(given_context_.get());
    Py_VISIT(context_.get());
    return 0;
  }
  void clear() noexcept {
    stop();
    sock_.reset();
    factory_.reset();
    server_.reset();
    tls_accept_.reset();
    given_context_.reset();
    context_.reset();
  }

  void hold() noexcept override {
    Py_INCREF(self_);
    loop_.note_io(self_);
  }
  void release() noexcept override { const Ref self = Ref::steal(self_); }
  [[nodiscard]] bool owns_descriptor() noexcept override {
    return has_descriptor(loop_.state(), sock_.get(), fd_);
  }

  [[nodiscard]] bool on_connection(UniqueFd fd, const os::SocketAddress& peer) override {
    loop_.engine().metrics().accepted.add();
    // Each connection has a context of its own, as asyncio's task for each connection gives it one.
    py::InContext accepting(context_.get());
    Ref context = given_context_ ? Ref::steal(PyContext_Copy(given_context_.get()))
                                 : Ref::steal(PyContext_CopyCurrent());
    py::InContext connection(context.get());
    if (!connection.entered()) {
      report_failure(PendingError::take(), nullptr);
      return true;
    }
    if (tls_accept_.is_none()) {
      make_transport(std::move(fd), peer, context.get());
    } else {
      hand_over(std::move(fd), peer, context.get());
    }
    // The factory may have closed the loop's server, or raised what must leave the loop.
    return !loop_.leaving();
  }

  void on_exhausted(int error) override {
    py::InContext accepting(context_.get());
    py::set_os_error(error);
    PendingError exception = PendingError::take();
    Ref result = Ref::steal(
        PyObject_CallMethodObjArgs(loop_.state().support, loop_.state().str__accept_exhausted,
                                   loop_.self(), self_, sock_.get(), exception.value(), nullptr));
    if (!result) {
      loop_.leave_with_error();
    }
  }

  void on_listener_error(int error) override {
    py::InContext accepting(context_.get());
    py::set_os_error(error);
    loop_.io_callback_failed("Listener.accept");
  }

 private:
  void make_transport(UniqueFd fd, const os::SocketAddress& peer, PyObject* context) {
    Ref protocol = Ref::steal(PyObject_CallNoArgs(factory_.get()));
    if (!protocol) {
      report_failure(PendingError::take(), nullptr);
      return;
    }
    TransportSpec spec;
    spec.protocol = protocol.get();
    spec.server = server_.is_none() ? nullptr : server_.get();
    spec.context = given_context_ ? context : nullptr;
    Ref transport = Ref::steal(accept_stream_transport(loop_, std::move(fd), peer, spec));
    if (!transport) {
      report_failure(PendingError::take(), protocol.get());
    }
  }

  void hand_over(UniqueFd fd, const os::SocketAddress& peer, PyObject* context) {
    ModuleState& state = loop_.state();
    // The Python socket's from here on, also when a KeyboardInterrupt ends the call that makes it.
    Ref sock = Ref::steal(PyObject_CallMethod(state.support, "_socket_from", "i", fd.release()));
    if (!sock) {
      report_failure(PendingError::take(), nullptr);
      return;
    }
    Ref address = Ref::steal(address_object(peer));
    Ref result =
        address
            ? Ref::steal(PyObject_CallFunctionObjArgs(tls_accept_.get(), sock.get(), address.get(),
                                                      given_context_ ? context : Py_None, nullptr))
            : Ref();
    if (!result) {
      report_failure(PendingError::take(), nullptr);
    }
  }

  // asyncio tells of a connection that could not be set up only in debug mode.
  void report_failure(PendingError error, PyObject* protocol) {
    if (error.must_leave_loop()) {
      loop_.leave_with(std::move(error));
    } else if (loop_.debug()) {
      loop_.report("Error on transport creation for incoming connection", std::move(error), nullptr,
                   protocol);
    }
  }

  PyObject* self_;  // Borrowed: this lives inside it.
  Ref loop_object_;
  Loop& loop_;
  std::optional<Listener> listener_;
  Ref sock_;
  int fd_ = -1;
  Ref factory_;
  Ref server_;
  Ref tls_accept_;
  Ref given_context_;  // Python 3.15's context= argument.
  Ref context_;
};

struct ListenerObject {
  PyObject_HEAD alignas(ServerListener) unsigned char storage[sizeof(ServerListener)];
  bool constructed;
};

[[nodiscard]] ServerListener& listener_of(PyObject* object) noexcept {
  return *reinterpret_cast<ServerListener*>(reinterpret_cast<ListenerObject*>(object)->storage);
}

PyObject* listener_stop(PyObject* self, PyObject*) {
  listener_of(self).stop();
  return py::none();
}

PyObject* listener_resume(PyObject* self, PyObject*) {
  listener_of(self).resume();
  return py::none();
}

// Listener(loop, sock, fd, factory, server, tls_accept, context, backlog)
PyObject* listener_new(PyTypeObject* type, PyObject* args, PyObject* keywords) {
  return py::guard([&]() -> PyObject* {
    PyObject* loop_object = nullptr;
    PyObject* sock = nullptr;
    int fd = -1;
    PyObject* factory = nullptr;
    PyObject* server = nullptr;
    PyObject* tls_accept = nullptr;
    PyObject* context = nullptr;
    int backlog = 0;
    if (keywords != nullptr && PyDict_GET_SIZE(keywords) != 0) {
      PyErr_SetString(PyExc_TypeError, "Listener() takes no keyword arguments");
      return nullptr;
    }
    if (!PyArg_ParseTuple(args, "OOiOOOOi:Listener", &loop_object, &sock, &fd, &factory, &server,
                          &tls_accept, &context, &backlog)) {
      return nullptr;
    }
    ModuleState* state = module_state_of(type);
    if (PyObject_TypeCheck(loop_object, state->loop_type) == 0) {
      PyErr_Format(PyExc_TypeError, "Listener() needs a cpploop loop, not %.200s",
                   py::type_name(loop_object));
      return nullptr;
    }
    Loop& loop = loop_of(loop_object);
    if (!loop.check_open() || !loop.check_thread()) {
      return nullptr;
    }
    if (fd < 0) {
      PyErr_Format(PyExc_ValueError, "Invalid file descriptor: %d", fd);
      return nullptr;
    }
    Ref self = Ref::steal(type->tp_alloc(type, 0));
    if (!self) {
      return nullptr;
    }
    auto* object = reinterpret_cast<ListenerObject*>(self.get());
    new (object->storage) ServerListener(self.get(), loop);
    object->constructed = true;
    constexpr int kBatchMax = 1024;
    const auto batch = static_cast<std::uint16_t>(std::clamp(backlog, 0, kBatchMax - 1) + 1);
    if (!listener_of(self.get()).start(sock, fd, factory, server, tls_accept, context, batch)) {
      return nullptr;
    }
    return self.release();
  });
}

int listener_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return reinterpret_cast<ListenerObject*>(self)->constructed
             ? listener_of(self).traverse(visit, arg)
             : 0;
}

int listener_clear(PyObject* self) {
  if (reinterpret_cast<ListenerObject*>(self)->constructed) {
    listener_of(self).clear();
  }
  return 0;
}

void listener_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  auto* object = reinterpret_cast<ListenerObject*>(self);
  if (object->constructed) {
    object->constructed = false;
    listener_of(self).~ServerListener();
  }
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef listener_methods[] = {
    {"stop", listener_stop, METH_NOARGS,
     "stop($self, /)\n--\n\nAccept no more; the socket may be closed."},
    {"resume", listener_resume, METH_NOARGS,
     "resume($self, /)\n--\n\nAccept again after the system had run out of descriptors."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot listener_slots[] = {
    {Py_tp_doc, const_cast<char*>(
                    "Listener(loop, sock, fd, factory, server, tls_accept, context, backlog, /)\n"
                    "--\n\n"
                    "Accepts connections for one listening socket.")},
    {Py_tp_new, reinterpret_cast<void*>(listener_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(listener_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(listener_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(listener_clear)},
    {Py_tp_methods, listener_methods},
    {0, nullptr},
};

PyType_Spec listener_spec = {
    "cpploop._native.Listener",
    sizeof(ListenerObject),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    listener_slots,
};

}  // namespace

bool add_listener_type(PyObject* module, ModuleState& state) {
  state.listener_type =
      reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &listener_spec, nullptr));
  return state.listener_type != nullptr && PyModule_AddType(module, state.listener_type) == 0;
}

}  // namespace cpploop

#include "binding/tls/bio_session.h"

#include <algorithm>
#include <cstring>

#include "binding/py/buffer.h"

namespace cpploop {

using py::Ref;

namespace {

[[nodiscard]] bool is_exactly(PyObject* object, PyObject* type) noexcept {
  return Py_IS_TYPE(object, reinterpret_cast<PyTypeObject*>(type));
}

// A method of `object`, bound at its first use. False with the Python error set.
[[nodiscard]] bool bind(Ref& method, PyObject* object, PyObject* name) {
  if (!method) {
    method = Ref::steal(PyObject_GetAttr(object, name));
  }
  return static_cast<bool>(method);
}

}  // namespace

bool BioSession::open(const TlsObjects& objects) {
  ssl_object_ = Ref::borrow(objects.ssl_object);
  incoming_ = Ref::borrow(objects.incoming);
  outgoing_ = Ref::borrow(objects.outgoing);
  plain_ = false;
  if (is_exactly(objects.ssl_object, state_.ssl_object_type) &&
      is_exactly(objects.incoming, state_.memory_bio_type) &&
      is_exactly(objects.outgoing, state_.memory_bio_type)) {
    ssl_socket_ = Ref::steal(PyObject_GetAttr(objects.ssl_object, state_.str__sslobj));
    if (!ssl_socket_) {
      return false;
    }
    plain_ = is_exactly(ssl_socket_.get(), state_.ssl_socket_type);
  }
  return true;
}

// A view of memory of ours, for a method of a plain object, which is done with it when it returns.
Ref BioSession::lend(const char* data, std::size_t size) const {
  return Ref::steal(
      PyMemoryView_FromMemory(const_cast<char*>(data), static_cast<Py_ssize_t>(size), PyBUF_WRITE));
}

bool BioSession::feed(const char* data, std::size_t size) {
  if (!bind(bio_write_, incoming_.get(), state_.str_write)) {
    return false;
  }
  Ref argument = plain_
                     ? lend(data, size)
                     : Ref::steal(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size)));
  Ref result = argument ? Ref::steal(PyObject_CallOneArg(bio_write_.get(), argument.get())) : Ref();
  return static_cast<bool>(result);
}

TlsSession::Result BioSession::judge_error() const {
  // asyncio's SSLAgainErrors.
  if (PyErr_ExceptionMatches(state_.ssl_want_read_error) != 0 ||
      PyErr_ExceptionMatches(state_.ssl_syscall_error) != 0) {
    PyErr_Clear();
    return {Outcome::again, 0};
  }
  return {Outcome::failed, 0};
}

TlsSession::Result BioSession::read(char* into, std::size_t size,
                                    std::span<const char>& /*received*/) {
  PyObject* owner = plain_ ? ssl_socket_.get() : ssl_object_.get();
  Ref wanted = Ref::steal(PyLong_FromSize_t(size));
  Ref target = plain_ ? lend(into, size) : Ref();
  if (!wanted || (plain_ && !target) || !bind(read_, owner, state_.str_read)) {
    return {Outcome::failed, 0};
  }
  PyObject* arguments[] = {wanted.get(), target.get()};
  Ref result = Ref::steal(PyObject_Vectorcall(read_.get(), arguments, plain_ ? 2 : 1, nullptr));
  if (!result) {
    return judge_error();
  }
  if (!plain_) {
    return copy_plaintext(result.get(), into, size);
  }
  const std::size_t count = PyLong_AsSize_t(result.get());
  if (PyErr_Occurred() != nullptr) {
    return {Outcome::failed, 0};
  }
  return {count == 0 ? Outcome::closed : Outcome::done, count};
}

TlsSession::Result BioSession::copy_plaintext(PyObject* bytes, char* into, std::size_t size) const {
  py::BufferView view;
  if (!view.acquire(bytes, PyBUF_SIMPLE)) {
    return {Outcome::failed, 0};
  }
  if (view.size() > size) {
    PyErr_SetString(PyExc_ValueError, "read() returned more than it was asked for");
    return {Outcome::failed, 0};
  }
  if (view.size() == 0) {
    return {Outcome::closed, 0};
  }
  std::memcpy(into, view.data(), view.size());
  return {Outcome::done, view.size()};
}

TlsSession::Result BioSession::write(const char* data, std::size_t size,
                                     std::span<char>& /*room*/) {
  PyObject* owner = plain_ ? ssl_socket_.get() : ssl_object_.get();
  Ref argument = plain_
                     ? lend(data, size)
                     : Ref::steal(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size)));
  if (!argument || !bind(write_, owner, state_.str_write)) {
    return {Outcome::failed, 0};
  }
  Ref result = Ref::steal(PyObject_CallOneArg(write_.get(), argument.get()));
  if (!result) {
    return judge_error();
  }
  const std::size_t count = PyLong_AsSize_t(result.get());
  if (PyErr_Occurred() != nullptr) {
    return {Outcome::failed, 0};
  }
  return {Outcome::done, std::min(count, size)};
}

Py_ssize_t BioSession::drain(char* into, std::size_t size) {
  Ref wanted = Ref::steal(PyLong_FromSize_t(size));
  if (!wanted || !bind(bio_read_, outgoing_.get(), state_.str_read)) {
    return -1;
  }
  Ref bytes = Ref::steal(PyObject_CallOneArg(bio_read_.get(), wanted.get()));
  if (!bytes) {
    return -1;
  }
  py::BufferView view;
  if (!view.acquire(bytes.get(), PyBUF_SIMPLE)) {
    return -1;
  }
  if (view.size() > size) {
    PyErr_SetString(PyExc_ValueError, "read() returned more than it was asked for");
    return -1;
  }
  std::memcpy(into, view.data(), view.size());
  return static_cast<Py_ssize_t>(view.size());
}

Py_ssize_t BioSession::pending_in(PyObject* bio) const {
  Ref pending = Ref::steal(PyObject_GetAttr(bio, state_.str_pending));
  const Py_ssize_t size = pending ? PyLong_AsSsize_t(pending.get()) : -1;
  if (size < 0 && PyErr_Occurred() == nullptr) {
    PyErr_SetString(PyExc_ValueError, "a BIO cannot hold less than nothing");
  }
  return size;
}

Py_ssize_t BioSession::incoming() { return pending_in(incoming_.get()); }
Py_ssize_t BioSession::outgoing() { return pending_in(outgoing_.get()); }

int BioSession::traverse(visitproc visit, void* arg) const {
  Py_VISIT(ssl_socket_.get());
  Py_VISIT(ssl_object_.get());
  Py_VISIT(incoming_.get());
  Py_VISIT(outgoing_.get());
  Py_VISIT(read_.get());
  Py_VISIT(write_.get());
  Py_VISIT(bio_write_.get());
  Py_VISIT(bio_read_.get());
  return 0;
}

std::shared_ptr<TlsSession> open_bio_session(ModuleState& state, const TlsObjects& objects) {
  auto session = std::make_shared<BioSession>(state);
  if (!session->open(objects)) {
    return nullptr;
  }
  return session;
}

}  // namespace cpploop

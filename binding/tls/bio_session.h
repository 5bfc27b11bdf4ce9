#pragma once

#include "binding/tls/tls_session.h"

namespace cpploop {

// Tier 0: SSLObject and MemoryBIO by their Python methods, bound once. Also the base of Tier 1,
// which comes here for everything that is not the plain case.
class BioSession : public TlsSession {
 public:
  explicit BioSession(ModuleState& state) : state_(state) {}

  // False with the Python error set.
  [[nodiscard]] bool open(const TlsObjects& objects);

  [[nodiscard]] bool feed(const char* data, std::size_t size) override;
  [[nodiscard]] Result read(char* into, std::size_t size, std::span<const char>& received) override;
  [[nodiscard]] Result write(const char* data, std::size_t size, std::span<char>& room) override;
  [[nodiscard]] Py_ssize_t drain(char* into, std::size_t size) override;
  [[nodiscard]] Py_ssize_t incoming() override;
  [[nodiscard]] Py_ssize_t outgoing() override;
  [[nodiscard]] int traverse(visitproc visit, void* arg) const override;

 protected:
  // Whether all three objects are exactly the ssl module's: then memory of ours may be lent to
  // their methods, which do not keep it.
  [[nodiscard]] bool plain() const noexcept { return plain_; }
  // The _ssl._SSLSocket of a plain session.
  [[nodiscard]] PyObject* ssl_socket() const noexcept { return ssl_socket_.get(); }

 private:
  [[nodiscard]] py::Ref lend(const char* data, std::size_t size) const;
  // What an exception of read() or write() means; `again` clears it.
  [[nodiscard]] Result judge_error() const;
  [[nodiscard]] Result copy_plaintext(PyObject* bytes, char* into, std::size_t size) const;
  [[nodiscard]] Py_ssize_t pending_in(PyObject* bio) const;

  ModuleState& state_;
  py::Ref ssl_socket_;
  py::Ref ssl_object_;
  py::Ref incoming_;
  py::Ref outgoing_;
  // Bound at their first use: Tier 1 hardly ever needs them.
  py::Ref read_;
  py::Ref write_;
  py::Ref bio_write_;
  py::Ref bio_read_;
  bool plain_ = false;
};

}  // namespace cpploop

#pragma once

#include <cstddef>

#include "binding/py/python.h"

namespace cpploop::tls {

// The functions of the very OpenSSL that Python's _ssl module was linked with, found through that
// module's own handle. Never another copy: contexts and connections are Python's, and two copies of
// OpenSSL agree on nothing. The only process-wide state of the binding, and it holds no Python
// object.
struct OpenSsl {
  int (*read)(void* ssl, void* into, int size);
  int (*write)(void* ssl, const void* data, int size);
  int (*get_error)(const void* ssl, int result);
  int (*get_shutdown)(const void* ssl);
  void* (*get_ex_data)(const void* ssl, int index);
  void* (*get_rbio)(const void* ssl);
  void* (*get_wbio)(const void* ssl);
  int (*bio_read)(void* bio, void* into, int size);
  int (*bio_write)(void* bio, const void* data, int size);
  std::size_t (*bio_pending)(void* bio);
  long (*bio_ctrl)(void* bio, int command, long number, void* object);
  void* (*new_buffer)();  // BUF_MEM_new
  // What it takes to stand before a BIO.
  void (*set_rbio)(void* ssl, void* bio);  // SSL_set0_rbio: takes the reference over
  void (*set_wbio)(void* ssl, void* bio);
  void* (*bio_new)(const void* method);
  int (*bio_up_ref)(void* bio);
  void (*bio_free_all)(void* bio);
  void* (*bio_push)(void* bio, void* next);
  void* (*bio_next)(void* bio);
  void (*bio_set_data)(void* bio, void* data);
  void* (*bio_get_data)(void* bio);
  void (*bio_clear_flags)(void* bio, int flags);
  void (*bio_copy_next_retry)(void* bio);
  int (*bio_new_index)();
  void* (*bio_method_new)(int type, const char* name);
  int (*bio_method_set_read)(void* method, int (*read)(void*, char*, int));
  int (*bio_method_set_write)(void* method, int (*write)(void*, const char*, int));
  int (*bio_method_set_control)(void* method, long (*control)(void*, int, long, void*));
  unsigned long (*peek_error)();
  void (*clear_error)();

  // What an earlier call of anybody's left in the thread's queue must not be taken for the next
  // call's error. Looking is cheaper than clearing.
  void clear_errors() const {
    if (peek_error() != 0) {
      clear_error();
    }
  }
};

// What SSL_get_error() and SSL_get_shutdown() answer; part of OpenSSL's stable interface.
inline constexpr int kErrorWantRead = 2;
inline constexpr int kErrorZeroReturn = 6;
inline constexpr int kReceivedShutdown = 2;
// BIO_ctrl()'s command that exchanges a memory BIO's buffer, and its word for "free it in the end".
inline constexpr int kSetBuffer = 114;
inline constexpr long kCloseBuffer = 1;

// Looks for the functions in the extension module at `path`; the first success holds for the
// process. Null, or the name of what is missing.
[[nodiscard]] const char* find_openssl(const char* path);
// Only after find_openssl() found everything.
[[nodiscard]] const OpenSsl& openssl() noexcept;

// The size of _ssl._SSLSocket in every Python whose layout was looked at. The SSL* lies behind the
// object's head and one pointer in all of them; a size that is not listed means a layout that
// nobody looked at.
[[nodiscard]] bool knows_socket_size(Py_ssize_t size) noexcept;
// The SSL* inside an _ssl._SSLSocket of a known size; OpenSSL itself is asked whether it belongs to
// this very object. Null when it does not.
[[nodiscard]] void* connection_of(PyObject* ssl_socket) noexcept;

}  // namespace cpploop::tls

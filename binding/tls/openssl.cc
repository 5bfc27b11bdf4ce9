#include "binding/tls/openssl.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

namespace cpploop::tls {
namespace {

OpenSsl g_functions;
std::atomic<bool> g_found{false};
std::mutex g_search;

// dlsym() with the handle of one library looks into that library and those it depends on, so what
// it finds is what the library itself uses, whatever else the process has loaded.
template <typename Function>
[[nodiscard]] bool look_up(void* library, const char* name, Function& target) {
  target = reinterpret_cast<Function>(dlsym(library, name));
  return target != nullptr;
}

[[nodiscard]] const char* first_missing(void* library, OpenSsl& functions) {
  const auto missing = [&](const char* name, auto& target) {
    return look_up(library, name, target) ? nullptr : name;
  };
  const char* names[] = {
      missing("SSL_read", functions.read),
      missing("SSL_write", functions.write),
      missing("SSL_get_error", functions.get_error),
      missing("SSL_get_shutdown", functions.get_shutdown),
      missing("SSL_get_ex_data", functions.get_ex_data),
      missing("SSL_get_rbio", functions.get_rbio),
      missing("SSL_get_wbio", functions.get_wbio),
      missing("BIO_read", functions.bio_read),
      missing("BIO_write", functions.bio_write),
      missing("BIO_ctrl_pending", functions.bio_pending),
      missing("BIO_ctrl", functions.bio_ctrl),
      missing("BUF_MEM_new", functions.new_buffer),
      missing("SSL_set0_rbio", functions.set_rbio),
      missing("SSL_set0_wbio", functions.set_wbio),
      missing("BIO_new", functions.bio_new),
      missing("BIO_up_ref", functions.bio_up_ref),
      missing("BIO_free_all", functions.bio_free_all),
      missing("BIO_push", functions.bio_push),
      missing("BIO_next", functions.bio_next),
      missing("BIO_set_data", functions.bio_set_data),
      missing("BIO_get_data", functions.bio_get_data),
      missing("BIO_clear_flags", functions.bio_clear_flags),
      missing("BIO_copy_next_retry", functions.bio_copy_next_retry),
      missing("BIO_get_new_index", functions.bio_new_index),
      missing("BIO_meth_new", functions.bio_method_new),
      missing("BIO_meth_set_read", functions.bio_method_set_read),
      missing("BIO_meth_set_write", functions.bio_method_set_write),
      missing("BIO_meth_set_ctrl", functions.bio_method_set_control),
      missing("ERR_peek_error", functions.peek_error),
      missing("ERR_clear_error", functions.clear_error),
  };
  const auto* found =
      std::find_if(std::begin(names), std::end(names), [](const char* name) { return name; });
  return found == std::end(names) ? nullptr : *found;
}

}  // namespace

const char* find_openssl(const char* path) {
  if (g_found.load(std::memory_order_acquire)) {
    return nullptr;
  }
  const std::lock_guard lock(g_search);
  // The module is loaded already; this only asks for its handle, which is kept for good.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (library == nullptr) {
    return "_ssl";
  }
  OpenSsl functions{};
  const char* missing = first_missing(library, functions);
  if (missing == nullptr && !g_found.load(std::memory_order_relaxed)) {
    g_functions = functions;
    g_found.store(true, std::memory_order_release);
  }
  return missing;
}

const OpenSsl& openssl() noexcept { return g_functions; }

bool knows_socket_size([[maybe_unused]] Py_ssize_t size) noexcept {
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(Py_GIL_DISABLED)
#if PY_VERSION_HEX >= 0x03100000
  return false;
#elif PY_VERSION_HEX >= 0x030F0000
  return size == 72;
#elif PY_VERSION_HEX >= 0x030E0000
  return size == 88;
#elif PY_VERSION_HEX >= 0x030C0000
  return size == 80;
#else
  return size == 96;
#endif
#elif (defined(__x86_64__) || defined(__aarch64__)) && PY_VERSION_HEX < 0x030E0000
  return size == 96;  // Free-threaded 3.13.
#else
  return false;
#endif
}

void* connection_of(PyObject* ssl_socket) noexcept {
  struct SocketHead {
    PyObject_HEAD PyObject* socket;
    void* ssl;
  };
  void* ssl = reinterpret_cast<SocketHead*>(ssl_socket)->ssl;
  // CPython keeps its object in slot 0 of every connection it makes (its callbacks look there).
  return ssl != nullptr && openssl().get_ex_data(ssl, 0) == ssl_socket ? ssl : nullptr;
}

}  // namespace cpploop::tls

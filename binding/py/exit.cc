#include <unistd.h>

#include "binding/py/ref.h"

namespace cpploop::py {

void park() noexcept {
  for (;;) {
    ::pause();
  }
}

void park_if_thread_is_ending() {
#if PY_VERSION_HEX < 0x030E0000
#if PY_VERSION_HEX >= 0x030D0000
  const bool detached = PyThreadState_GetUnchecked() == nullptr;
#else
  const bool detached = _PyThreadState_UncheckedGet() == nullptr;
#endif
  if (detached) {
    park();
  }
#endif
}

}  // namespace cpploop::py

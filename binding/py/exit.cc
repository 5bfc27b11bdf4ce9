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
#elif PY_VERSION_HEX >= 0x030C0000
  const bool detached = _PyThreadState_UncheckedGet() == nullptr;
#else
  // The state of 3.11 is the process's: that of whoever has the interpreter, which this thread has
  // lost.
  const bool detached = PyGILState_Check() == 0;
#endif
  if (detached) {
    park();
  }
#endif
}

}  // namespace cpploop::py

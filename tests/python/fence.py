"""Takes system calls away from this process, as an old kernel or a container's filter does.

The real thing: a seccomp filter, which the kernel asks at every call. It cannot be taken back, so
this is for processes that a test starts, and for a program with all of its children:

    python fence.py EPERM io_uring_setup,io_uring_enter python -m pytest
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# Linux has given the newer ones the same numbers everywhere.
NUMBERS = {
    "x86_64": {"accept4": 288, "recvmmsg": 299},
    "aarch64": {"accept4": 242, "recvmmsg": 243},
}
COMMON = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "pidfd_open": 434,
    "epoll_pwait2": 441,
}
CALLS = ("epoll_pwait2", "accept4", "recvmmsg", "pidfd_open", "pidfd_send_signal")

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# The exit status of a script that could not be fenced; the test is skipped then.
CANNOT = 77


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def refuse(calls: list[str], error: int) -> None:
    """From here on CALLS fail with ERROR in this process; ends it where there is no seccomp."""
    machine = platform.machine()
    if machine not in NUMBERS or sys.maxsize < 1 << 32:
        print(f"the numbers of the system calls of {machine} are not known here")
        raise SystemExit(CANNOT)
    numbers = [{**NUMBERS[machine], **COMMON}[call] for call in calls]
    program = [(_LOAD_NUMBER, 0, 0)]
    for index, number in enumerate(numbers):
        program.append((_JUMP_IF_EQUAL, len(numbers) - index, number))
    program += [(_RETURN, 0, _ALLOW), (_RETURN, 0, _ERRNO | error)]
    code = b"".join(struct.pack("HBBI", what, jump, 0, k) for what, jump, k in program)
    memory = ctypes.create_string_buffer(code)
    head = _Program(len(program), ctypes.cast(memory, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(head), 0, 0) != 0:
        print("this kernel takes no filter, errno", ctypes.get_errno())
        raise SystemExit(CANNOT)
    # The filter is asked first: without it a number of -1 would be what is wrong with each.
    libc.syscall.argtypes = [ctypes.c_long] * 7
    for call, number in zip(calls, numbers, strict=True):
        result = libc.syscall(number, -1, 0, 0, 0, 0, 0)
        assert (result, ctypes.get_errno()) == (-1, error), f"{call} is not refused"


def main() -> None:
    """Becomes a command, from which these calls are taken away."""
    error, calls, *command = sys.argv[1:]
    refuse(calls.split(","), getattr(errno, error))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Runs tests under sanitizers, and under what the interpreter has of that kind.
#   scripts/sanitized.sh core asan|tsan [JOBS]       the engine's tests, by CMake preset
#   scripts/sanitized.sh python NAME [PYTEST ARG...] the Python tests with an instrumented extension in
#                                                    the ordinary interpreter NAME (see pythons.sh)
#   scripts/sanitized.sh conformance NAME [ARG...]   the interpreter's own asyncio tests with that
#   scripts/sanitized.sh tls NAME [PYTEST ARG...]    the TLS tests among both, each way of doing TLS
#   scripts/sanitized.sh debug NAME [PYTEST ARG...]  some Python tests with PYTHONMALLOC=debug and -X dev
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"

# Where memory is made and given back most, chosen so that both runs together take two minutes.
debug_tests='gc leaks handles timers threadsafe fd_ownership exceptions finalise no_python_half_made'
dev_mode_tests='gc leaks debug streams transport_read transport_write tls datagram_life sock_cancel'

test_files() { printf 'tests/python/test_%s.py\n' "$@"; }

# sanitized NAME ARG...: runs a program of ours in the interpreter NAME, with the instrumented extension.
sanitized() {
  local name=$1 venv=build/venvs/asan-$1 libraries
  shift
  scripts/venv.sh --sanitize address,undefined "$name" "$venv"
  # The interpreter is not instrumented, so the runtime must come first; and without libstdc++
  # beside it the runtime finds no real __cxa_throw, and every C++ exception ends the process.
  # Both are those of the compiler that built it, which in a chroot is another one; and what enters
  # the chroot does without.
  # shellcheck disable=SC2016
  libraries=$("$venv/run" sh -c 'c=${CXX:-g++}; echo $($c -print-file-name=libasan.so) $($c -print-file-name=libstdc++.so)')
  # pymalloc would hide overflows inside its arenas; a free-threaded build knows only its own allocator.
  # CPython itself leaks at exit by design. The tests multiply their time-outs by the scale: instrumented
  # code runs two to four times slower.
  PYTHONMALLOC=$("$venv/run" "$venv/bin/python" -c 'import sysconfig
print("default" if sysconfig.get_config_var("Py_GIL_DISABLED") else "malloc")') \
    ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:abort_on_error=1 \
    UBSAN_OPTIONS=print_stacktrace=1 \
    CPPLOOP_TIME_SCALE=${CPPLOOP_TIME_SCALE:-4} \
    "$venv/run" env LD_PRELOAD="$libraries" "$venv/bin/python" "$@"
}

case ${1:?core, python, conformance, tls or debug} in
  core)
    preset=${2:?preset} jobs=${3:-2}
    scripts/need.sh compiler cmake ninja gtest
    cmake --preset "$preset" --log-level=WARNING
    cmake --build --preset "$preset" -j "$jobs"
    # ThreadSanitizer of GCC 12 cannot place its shadow under a large address randomisation.
    plain=()
    if [[ $preset == tsan ]] && setarch -R true 2>/dev/null; then plain=(setarch -R); fi
    "${plain[@]}" scripts/ctest.sh "$preset" "$jobs"
    ;;
  python | conformance | tls)
    what=$1 name=${2:?NAME}
    shift 2
    case $what in
      python) sanitized "$name" -m pytest "$@" ;;
      conformance) sanitized "$name" tests/conformance/run.py --timeout 120 "$@" ;;
      tls)
        for tier in asyncio bio direct; do
          CPPLOOP_TLS=$tier sanitized "$name" tests/conformance/run.py --timeout 120 \
            --suite test_ssl --suite test_sslproto
        done
        sanitized "$name" -m pytest "$@" tests/python/test_tls*.py
        ;;
    esac
    ;;
  debug)
    name=${2:?NAME}
    shift 2
    venv=build/venvs/$name
    scripts/venv.sh "$name" "$venv"
    # Freed memory is overwritten, the edges of blocks are watched, a wrong allocator is fatal.
    echo "PYTHONMALLOC=debug"
    # shellcheck disable=SC2046,SC2086
    PYTHONMALLOC=debug "$venv/run" "$venv/bin/python" -m pytest -m 'not slow' "$@" \
      $(test_files $debug_tests)
    # The same allocator, and asyncio's debug mode in every loop.
    echo "-X dev"
    # shellcheck disable=SC2046,SC2086
    "$venv/run" "$venv/bin/python" -X dev -m pytest -m 'not slow' "$@" $(test_files $dev_mode_tests)
    ;;
  *)
    echo "usage: scripts/sanitized.sh core asan|tsan [JOBS] | python NAME [PYTEST ARG...] |" \
      "conformance NAME [ARG...] | tls NAME [PYTEST ARG...] | debug NAME [PYTEST ARG...]" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Runs tests under sanitizers, and under what the interpreter has of that kind.
#   scripts/sanitized.sh core asan|tsan [JOBS]       the engine's tests, by CMake preset
#   scripts/sanitized.sh python NAME [PYTEST ARG...] the Python tests with an instrumented extension in
#                                                    the ordinary interpreter NAME (see pythons.sh)
#   scripts/sanitized.sh conformance NAME [ARG...]   the interpreter's own asyncio tests with that
#   scripts/sanitized.sh debug NAME [PYTEST ARG...]  some Python tests with PYTHONMALLOC=debug and -X dev
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"

# Where memory is made and given back most, chosen so that both runs together take two minutes.
debug_tests='gc leaks handles timers threadsafe fd_ownership exceptions finalise no_python_half_made'
dev_mode_tests='gc leaks debug streams transport_read transport_write tls datagram_life sock_cancel'

test_files() { printf 'tests/python/test_%s.py\n' "$@"; }

case ${1:?core, python, conformance or debug} in
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
  python | conformance)
    what=$1 name=${2:?NAME}
    shift 2
    venv=build/venvs/asan
    scripts/venv.sh --sanitize address,undefined "$name" "$venv"
    # The interpreter is not instrumented, so the runtime must come first; and without libstdc++
    # beside it the runtime finds no real __cxa_throw, and every C++ exception ends the process.
    compiler=${CXX:-g++}
    # shellcheck disable=SC2086
    export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)"
    # pymalloc would hide overflows inside its arenas. CPython itself leaks at exit by design.
    export PYTHONMALLOC=malloc
    export ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:abort_on_error=1
    export UBSAN_OPTIONS=print_stacktrace=1
    # The tests multiply their time-outs by it: instrumented code runs two to four times slower.
    export CPPLOOP_TIME_SCALE=${CPPLOOP_TIME_SCALE:-4}
    if [[ $what == python ]]; then
      "$venv/run" "$venv/bin/python" -m pytest "$@"
    else
      "$venv/run" "$venv/bin/python" tests/conformance/run.py --timeout 120 "$@"
    fi
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
      "conformance NAME [ARG...] | debug NAME [PYTEST ARG...]" >&2
    exit 2
    ;;
esac

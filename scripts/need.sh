#!/usr/bin/env bash
# scripts/need.sh THING...: exits with one line that names the Debian package for each THING that is
# missing: compiler, cmake, ninja, gtest, clang, valgrind, openssl (its headers), or python=PATH (its
# headers and its venv module).
set -euo pipefail

missing=()
lacks() { missing+=("$1 is missing; on Debian: apt-get install $2"); }

# Asked of the compiler, which knows its own folders.
has_header() { echo "#include <$1>" | ${CXX:-c++} -std=c++20 -E -x c++ - >/dev/null 2>&1; }

for thing in "$@"; do
  case $thing in
    compiler)
      if [[ -n ${CXX:-} ]]; then
        command -v "${CXX%% *}" >/dev/null || lacks "the C++ compiler that CXX names ($CXX)" "g++"
      elif ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
        lacks "a C++20 compiler" "g++"
      fi
      ;;
    cmake)
      if ! command -v cmake >/dev/null; then
        lacks "CMake 3.25 or newer" "cmake"
      else
        version=$(cmake --version | sed -nE '1s/.* ([0-9]+\.[0-9]+).*/\1/p')
        oldest=$(printf '3.25\n%s\n' "$version" | sort -V | head -1)
        [[ $oldest == 3.25 ]] || lacks "CMake 3.25 or newer (this is $version)" "cmake"
      fi
      ;;
    ninja) command -v ninja >/dev/null || lacks "Ninja" "ninja-build" ;;
    clang) command -v clang++ >/dev/null || command -v clang++-16 >/dev/null || lacks "Clang 16 or newer" "clang-16" ;;
    valgrind) command -v valgrind >/dev/null || lacks "valgrind, which counts instructions," "valgrind" ;;
    gtest)
      # A prefix given to CMake is CMake's to look at.
      if [[ -z ${CMAKE_PREFIX_PATH:-} ]] && ! has_header gtest/gtest.h; then
        lacks "GoogleTest" "libgtest-dev libgmock-dev"
      fi
      ;;
    openssl) has_header openssl/ssl.h || lacks "openssl/ssl.h, for the load generator," "libssl-dev" ;;
    python=*)
      python=${thing#python=}
      version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
      "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        lacks "Python.h for Python $version" "python$version-dev"
      "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        lacks "the venv module of Python $version" "python$version-venv"
      ;;
    *)
      echo "usage: scripts/need.sh compiler|cmake|ninja|gtest|clang|valgrind|openssl|python=PATH ..." >&2
      exit 2
      ;;
  esac
done

for line in "${missing[@]}"; do echo "cpploop: $line" >&2; done
[[ ${#missing[@]} -eq 0 ]]

#!/usr/bin/env bash
# Finds the Pythons at hand. A NAME is 3.11 ... 3.15, with a t behind it for a free-threaded build,
# or `newest` (the newest ordinary one), or a path to an interpreter.
#   scripts/pythons.sh list          one line each: NAME, a tab, the interpreter's path
#   scripts/pythons.sh find NAME     the interpreter's path
#   scripts/pythons.sh runner NAME   what a command of one of its virtual environments must be prefixed
#                                    with; an empty line for nearly all
#   scripts/pythons.sh setup         installs the interpreters that this system lacks, where the script
#                                    that does so is at hand (CPPLOOP_PYTHONS_SETUP names it)
# Looked at in this order: pyenv's versions, PATH, and the folder that `setup` fills (PYTHONS_DIR).
# An interpreter there may live in a chroot, together with the script run-in, which enters it.
set -euo pipefail

known=(3.11 3.12 3.13 3.14 3.15 3.13t 3.14t 3.15t)
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pythons_dir=${PYTHONS_DIR:-$HOME/.cache/pythons}
setup_script=${CPPLOOP_PYTHONS_SETUP:-$repo/../shared/pythons/setup}

# The name an interpreter answers to, or nothing when it does not start. A pyenv shim in PATH is one
# that starts only while its version is selected, so a file that exists proves little.
name_of() {
  (cd "$repo" && "$1" -c 'import sys, sysconfig
t = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print(f"{sys.version_info[0]}.{sys.version_info[1]}{t}")') 2>/dev/null || true
}

candidates() {
  local name=$1 path root
  root=${PYENV_ROOT:-$HOME/.pyenv}
  # Newest patch release first.
  for path in $(printf '%s\n' "$root/versions/${name%t}".*/bin/python | sort -rV); do
    printf '%s\n' "$path"
  done
  command -v "python$name" || true
  printf '%s\n' "$pythons_dir/python$name/bin/python$name" "$pythons_dir/py$name"
}

# One line here, instead of pip's complaint at the end of a build.
refuse_old() {
  if [[ $1 =~ ^([0-9]+)\.([0-9]+) ]] && ((BASH_REMATCH[1] < 3 || (BASH_REMATCH[1] == 3 && BASH_REMATCH[2] < 11))); then
    echo "cpploop: Python $1 is too old; it takes 3.11 or newer" >&2
    exit 3
  fi
}

find_python() {
  local name=$1 path known_as
  if [[ $name == */* ]]; then
    known_as=$(name_of "$name")
    [[ -n $known_as ]] || return 1
    refuse_old "$known_as"
    printf '%s\n' "$name"
    return 0
  fi
  refuse_old "$name"
  if [[ $name == newest ]]; then
    for name in 3.15 3.14 3.13 3.12 3.11; do
      path=$(find_python "$name") || continue
      # One in a chroot is not what a program started here would be run with.
      [[ -z $(runner_of "$path") ]] || continue
      printf '%s\n' "$path"
      return 0
    done
    return 1
  fi
  while read -r path; do
    if [[ -x $path && $(name_of "$path") == "$name" ]]; then
      printf '%s\n' "$path"
      return 0
    fi
  done < <(candidates "$name")
  return 1
}

runner_of() {
  local path=$1
  if [[ $path == "$pythons_dir"/py3.* && -x $pythons_dir/run-in ]]; then
    printf '%s\n' "$pythons_dir/run-in"
  else
    printf '\n'
  fi
}

# not_found NAME STATUS: the status of find_python, which may have said what is wrong already.
not_found() {
  [[ $2 != 3 ]] || exit 1
  if [[ $1 == newest ]]; then
    echo "cpploop: no Python 3.11 or newer found; on Debian: apt-get install python3 python3-venv python3-dev" >&2
  else
    echo "cpploop: Python $1 is not at hand (looked at pyenv, PATH and $pythons_dir)" >&2
  fi
  exit 1
}

case ${1:-list} in
  list)
    for name in "${known[@]}"; do
      if path=$(find_python "$name"); then printf '%s\t%s\n' "$name" "$path"; fi
    done
    ;;
  find)
    path=$(find_python "${2:?NAME}") || not_found "$2" $?
    printf '%s\n' "$path"
    ;;
  runner)
    path=$(find_python "${2:?NAME}") || not_found "$2" $?
    runner_of "$path"
    ;;
  setup)
    if [[ ! -x $setup_script ]]; then
      echo "cpploop: no script that installs further Pythons at hand (CPPLOOP_PYTHONS_SETUP names one)"
      exit 77
    fi
    "$setup_script" "${@:2}"
    ;;
  *)
    echo "usage: scripts/pythons.sh list | find NAME | runner NAME | setup" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# scripts/venv.sh [--sanitize LIST] [--define OPTION=VALUE]... [--pgo] [--no-test] [--with FILE]...
#                 [--try FILE]... [--no-build] NAME DIR
# Makes the virtual environment DIR for the Python that pythons.sh knows as NAME, installs the pinned
# requirements for building and testing (and those of each requirements/FILE.txt), and builds cpploop
# into it. What is already there and newer than the sources is kept. --try is --with for what may
# have no wheel for this Python: the tests that need it are skipped then. --define sets an option of
# CMake's, for a variant that tests need (CPPLOOP_FAULTS=ON). --pgo builds as wheels are built, by a
# profile, which takes twice the time. --no-test leaves our own tests'
# requirements out, for environments in which somebody else's tests run.
# DIR/run COMMAND... runs a command of the environment; for nearly every Python it just runs it.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sanitize='' defines=() pgo='' files=(build test) optional=() build=yes
while [[ ${1:-} == --* ]]; do
  case $1 in
    --sanitize) sanitize=$2; shift 2 ;;
    --define) defines+=("$2"); shift 2 ;;
    --pgo) pgo=yes; shift ;;
    --with) files+=("$2"); shift 2 ;;
    --try) optional+=("$2"); shift 2 ;;
    --no-build) build=no; shift ;;
    --no-test) files=(build); shift ;;
    *) echo "scripts/venv.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
name=${1:?NAME} dir=${2:?DIR}
python=$("$repo/scripts/pythons.sh" find "$name")
runner=$("$repo/scripts/pythons.sh" runner "$name")
[[ $dir == /* ]] || dir=$PWD/$dir
cd "$repo"
if [[ -n $runner && $(cut -d/ -f2 <<<"$dir") != $(cut -d/ -f2 <<<"$repo") ]]; then
  echo "cpploop: Python $name lives in a chroot that sees only the repository's top folder; $dir is outside" >&2
  exit 1
fi
# Unquoted where it is used: it is one word or none.
# shellcheck disable=SC2086
run() { $runner "$@"; }

if [[ $build == yes ]]; then
  needs=(compiler cmake ninja)
  # Asked of the interpreter itself; the ones in a chroot come with their headers.
  [[ -n $runner ]] || needs+=("python=$python")
  run "$repo/scripts/need.sh" "${needs[@]}"
fi

# Made anew when it belongs to another interpreter.
if [[ ! -x $dir/run || $(cat "$dir/.interpreter" 2>/dev/null) != "$python" ]]; then
  rm -rf "$dir"
  "$python" -m venv "$dir"
  printf '#!/usr/bin/env bash\nexec %s "$@"\n' "$runner" >"$dir/run"
  chmod +x "$dir/run"
  printf '%s\n' "$python" >"$dir/.interpreter"
fi

# Remembered by content, so that a changed pin is installed and an unchanged one costs nothing.
install() { # FILE...
  local pins options=() file
  pins=$(cat "$@" | sha256sum)
  [[ $(cat "$dir/.pins" 2>/dev/null) != *"$pins"* ]] || return 0
  for file in "$@"; do options+=(-r "$file"); done
  run "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}" || return
  printf '%s\n' "$pins" >>"$dir/.pins"
}
files=("${files[@]/#/requirements/}")
install "${files[@]/%/.txt}"
# pip finds no distribution where there is no wheel, and also where it did not reach the index: only
# the first may be tolerated, and the second is worth another try.
no_wheel='No matching distribution found|ResolutionImpossible'
no_network='Retrying \(|Could not fetch URL|Read timed out|HTTP error|HTTPError'
install_if_wheels() { # FILE
  local attempt output
  for attempt in 1 2 3; do
    if output=$(PIP_ONLY_BINARY=:all: install "$1" 2>&1); then return 0; fi
    grep -qE "$no_network" <<<"$output" || break
    if ((attempt < 3)); then sleep $((attempt * 5)); fi
  done
  if grep -qE "$no_wheel" <<<"$output" && ! grep -qE "$no_network" <<<"$output"; then
    echo "cpploop: $1 has no wheels for Python $name; what needs it is skipped"
    return 0
  fi
  printf '%s\n' "$output" >&2
  echo "cpploop: $1 cannot be installed for Python $name" >&2
  return 1
}
for file in "${optional[@]}"; do install_if_wheels "requirements/$file.txt"; done

[[ $build == yes ]] || exit 0
sources=(CMakeLists.txt cmake core binding python pyproject.toml)
settings="sanitize=$sanitize ${defines[*]} pgo=$pgo"
is_built() {
  [[ -e $dir/.built && $(cat "$dir/.built") == "$settings" ]] &&
    [[ -z $(find "${sources[@]}" -name __pycache__ -prune -o -newer "$dir/.built" -print -quit) ]]
}
if is_built; then exit 0; fi
options=(--quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall)
if [[ -n $sanitize || ${#defines[@]} -gt 0 ]]; then
  # Variants are for tests, and each has a build folder of its own.
  variant=${sanitize//,/-}
  for define in "${defines[@]}"; do
    options+=(-C "cmake.define.$define")
    variant+=-${define//[^A-Za-z0-9_]/-}
  done
  options+=(-C "cmake.define.CPPLOOP_SANITIZE=$sanitize" -C cmake.build-type=RelWithDebInfo
    -C "build-dir=build/{wheel_tag}-$variant")
fi
# Two builds of the same wheel tag at once would share one build folder.
mkdir -p build
exec 9>build/.lock
if command -v flock >/dev/null; then flock 9; fi
# Whoever had the lock may have built this one.
if is_built; then exit 0; fi
# Before the build, so that a file edited while it runs is seen by the next one.
stamp=$(mktemp "$dir/.stamp.XXXXXX")
printf '%s\n' "$settings" >"$stamp"
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2}
if [[ -n $pgo ]]; then
  profile=$repo/build/profile-${name//[^A-Za-z0-9.]/-}
  run "$dir/bin/python" scripts/pgo.py "$profile" --no-build-isolation
  options+=(-C cmake.define.CPPLOOP_PGO=use -C "cmake.define.CPPLOOP_PGO_PROFILE=$profile"
    -C "build-dir=build/{wheel_tag}-pgo")
fi
run "$dir/bin/python" -m pip install "${options[@]}" .
mv "$stamp" "$dir/.built"

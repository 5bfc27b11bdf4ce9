#!/bin/bash
# Makes an environment with the pinned rivals and web servers of requirements.txt.
#
#   benchmarks/setup.sh [--run WRAPPER] PYTHON VENV
#   benchmarks/setup.sh "$(command -v python3)" .venv-bench
#
# --run WRAPPER: a command that runs the environment's programs, for a Python that lives in a chroot
# or container (WRAPPER COMMAND...). The environment must be at the same path inside, and so must
# this folder. What has no wheel for this Python is skipped by name; cpploop itself is not
# installed here: VENV/bin/python -m pip install . from the repository's root.
set -euo pipefail

die() { echo "setup.sh: $*" >&2; exit 1; }

wrapper=()
if [[ ${1:-} == --run ]]; then
  [[ -n ${2:-} ]] || die "--run needs a command"
  wrapper=("$2")
  shift 2
fi
[[ $# -eq 2 ]] || die "usage: setup.sh [--run WRAPPER] PYTHON VENV"
python=$1 venv=$2
requirements=$(cd "$(dirname "$0")" && pwd)/requirements.txt

mkdir -p "$venv"
venv=$(cd "$venv" && pwd)
# From its own folder: a wrapper that binds the working directory then sees the environment. Pins
# are copied beside it for the same reason.
cd "$venv"
# Or a link: one that leads into a chroot leads nowhere outside it.
[[ -x bin/python || -L bin/python ]] || "$python" -m venv "$venv" || die "$python cannot make a venv (python3-venv?)"
cp "$requirements" requirements.txt

skipped=()
while read -r requirement; do
  if output=$("${wrapper[@]}" "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
      --only-binary :all: --constraint requirements.txt "$requirement" 2>&1); then
    echo "installed $requirement"
  elif grep -q 'No matching distribution found\|ResolutionImpossible' <<<"$output"; then
    skipped+=("$requirement")
  else
    echo "$output" >&2
    die "cannot install $requirement"
  fi
done < <(sed -n '/^# rivals/,/^# what those need/p' requirements.txt | grep '==')

for requirement in "${skipped[@]}"; do
  echo "skipped $requirement: it, or something it needs, has no wheel for this Python"
done
"${wrapper[@]}" "$venv/bin/python" -VV

#!/usr/bin/env bash
# scripts/ctest.sh PRESET [JOBS]: runs the tests of a configured preset, and ends with the names of
# those that failed, which ctest prints before the output of most of them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
preset=${1:?PRESET} jobs=${2:-2}
last_failed=build/$preset/Testing/Temporary/LastTestsFailed.log
rm -f "$last_failed"
ctest --preset "$preset" -j "$jobs" 2>&1 | grep -vE '^ +Start +[0-9]+: '
status=${PIPESTATUS[0]}
# What the fuzz targets tried: under libFuzzer the seed and the runs, elsewhere the inputs replayed.
awk '/^[0-9]+\/[0-9]+ Test(ing)?: fuzz\./ { name = $NF }
  name != "" && /^INFO: Seed: / { seed = ", seed " $NF }
  name != "" && /^Done [0-9]+ runs in / { print name ": " $2 " inputs" seed; name = seed = "" }
  name != "" && /^[0-9]+ inputs replayed$/ { print name ": " $0; name = "" }
' "build/$preset/Testing/Temporary/LastTest.log" 2>/dev/null
if [[ $status != 0 && -e $last_failed ]]; then
  echo "failed:"
  sed 's/^[0-9]*:/  /' "$last_failed"
fi
exit "$status"

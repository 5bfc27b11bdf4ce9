#!/usr/bin/env bash
# scripts/second_try.sh COMMAND...: runs Python tests, and those that failed once more by themselves.
# A machine that is busy with other things fails a test by its clock now and then. What passes only
# then is told of in a line that begins with NOTE, so that somebody mends it. No second try is there
# for what no clock explains: a crash, a hang, a word of a sanitizer, a failed test of the engine; nor
# for more failures than bad luck has. COMMAND runs pytest in this checkout, and may run more.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
most=3
last_failed=.pytest_cache/v/cache/lastfailed
grave='AddressSanitizer|LeakSanitizer|ThreadSanitizer|: runtime error: |Fatal Python error'
grave+='|crashed while running|exit status -[0-9]|Failed: Timeout|, [1-9][0-9]* tests? failed out of'

output=$(mktemp)
trap 'rm -f "$output"' EXIT
rm -f "$last_failed"
"$@" 2>&1 | tee "$output"
status=${PIPESTATUS[0]}
[[ $status != 0 ]] || exit 0
if grep -qE "$grave" "$output"; then
  echo "no second try: something crashed or hung, or more than the Python tests failed"
  exit "$status"
fi
mapfile -t failed < <(grep -E '^(FAILED|ERROR) tests/' "$output" | sed -E 's/^[A-Z]+ //; s/ - .*//' | sort -u)
if ((${#failed[@]} == 0 || ${#failed[@]} > most)); then
  echo "no second try for ${#failed[@]} failures"
  exit "$status"
fi
echo "== once more, what failed"
# As a variable, because COMMAND may be make's. tests/python/conftest.py hides it from what tests run.
PYTEST_ADDOPTS='--last-failed --last-failed-no-failures=none' "$@"
status=$?
[[ $status != 0 ]] || printf 'NOTE: passed only when run again: %s\n' "${failed[*]}"
exit "$status"

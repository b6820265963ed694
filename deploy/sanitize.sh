#!/usr/bin/env bash
# Runs the unit and service tests of a build with sanitizers and shows all reports, also those of
# the services that tests start: a service that dies of one is started again by its supervisor, and
# one that reports while it ends tells nobody. Ends with 1 if a test fails or anything was reported.
# Called by `make asan` and `make tsan`; the sanitizers' options are in CMakePresets.json.
#
#   deploy/sanitize.sh asan|tsan [ctest options]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=$1
shift
reports="build/$preset/reports"
rm -rf "$reports"
mkdir -p "$reports"

run=(ctest --preset "$preset" --parallel 2 --progress "$@")
# GCC 12's TSan cannot place its shadow memory where addresses are random to more than 28 bits.
if [ "$preset" = tsan ] && [ "$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)" -gt 28 ]; then
  run=(setarch "$(uname -m)" -R "${run[@]}")
fi
failed=0
"${run[@]}" || failed=1

# A test may ask for more memory than there is, and is told so as it would be without a sanitizer.
mapfile -t files < <(grep -rlvE '^$|WARNING: [A-Za-z]+Sanitizer failed to allocate' "$reports")
for file in "${files[@]}"; do
  printf '[%s] %s\n' "$preset" "$file" >&2
  cat "$file" >&2
done
if [ ${#files[@]} -gt 0 ]; then
  printf '[%s] FAILED: %d processes reported, see above\n' "$preset" ${#files[@]} >&2
  failed=1
fi
exit $failed

#!/usr/bin/env bash
# Checks formats and lint rules; prints what is wrong and ends with 1. Called by `make lint`.
#
#   deploy/lint.sh BUILD_FOLDER    clang-tidy needs the compile commands of a configured build
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/pins.env
source deploy/pins.env
build=${1:-build/release}
cache=${MNEME_CACHE:-$HOME/.cache/mneme}
buf="$cache/buf-$BUF_VERSION/node_modules/.bin/buf"
failed=0

check() {
  local name=$1
  shift
  printf '[lint] %s\n' "$name"
  "$@" || { printf '[lint] FAILED: %s\n' "$name" >&2; failed=1; }
}

mapfile -t sources < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
check 'clang-format' clang-format-16 --dry-run --Werror "${sources[@]}"

protos() { (cd protos && "$@"); }
check 'buf format' protos "$buf" format --diff --exit-code
check 'buf lint' protos "$buf" lint

# clang-tidy on the sources that this branch changed since the last landing, and on those beside a
# header that it changed; on a fresh clone of main that is what the newest commit changed.
# LINT_BASE=<commit> looks further back, LINT_BASE=all at everything.
if [ "${LINT_BASE:-}" = all ]; then
  mapfile -t changed < <(git ls-files '*.cc' '*.h')
else
  base=$(git merge-base HEAD "${LINT_BASE:-HEAD~1}" 2>/dev/null || git rev-list --max-parents=0 HEAD | tail -n 1)
  mapfile -t changed < <(git diff --name-only --diff-filter=d "$base" -- '*.cc' '*.h')
fi
# Clang does not know all options of GCC's, nor its precompiled headers; its warnings are not what is
# checked here.
tidy=$build/tidy
if [ -e "$build/compile_commands.json" ]; then
  mkdir -p "$tidy"
  sed -E 's/ -(fno-tree-[a-z]+|Wno-maybe-uninitialized|Werror|Winvalid-pch|include [^ ]*cmake_pch\.hxx)\b//g' "$build/compile_commands.json" \
    > "$tidy/compile_commands.json"
fi
mapfile -t checked < <(
  for file in "${changed[@]}"; do
    source=${file%.*}.cc
    [ -e "$source" ] && grep -qF "/$source\"" "$tidy/compile_commands.json" 2>/dev/null && echo "$source"
  done | sort -u)
if [ ${#checked[@]} -gt 0 ]; then
  check "clang-tidy (${#checked[@]} files)" bash -c \
    'printf "%s\n" "${@:2}" | xargs -P 2 -n 1 clang-tidy-16 -p "$1" --quiet 2>/dev/null' \
    tidy "$tidy" "${checked[@]}"
fi

while IFS= read -r manifest; do
  folder=$(dirname "$manifest")
  if cargo fmt --version >/dev/null 2>&1; then
    check "cargo fmt ($folder)" cargo fmt --check --manifest-path "$manifest"
  else
    echo "[lint] cargo fmt is not installed: $folder not checked"
  fi
  if cargo clippy --version >/dev/null 2>&1; then
    check "cargo clippy ($folder)" env CARGO_TARGET_DIR="$cache/clippy" \
      cargo clippy --quiet --locked --manifest-path "$manifest" -- -D warnings
  else
    echo "[lint] cargo clippy is not installed: $folder not checked"
  fi
done < <(git ls-files '*Cargo.toml')
exit $failed

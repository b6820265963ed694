#!/usr/bin/env python3
"""What the presses of the Python project kvpress show where `mneme compare` measures: the same model,
the same windows of the same text, the history compressed once after it was read, then the target
predicted token by token. Its figures stand beside ours in docs/memory-policies.md.

    python -m venv VENV
    VENV/bin/pip install torch==2.11.0 'transformers<5.3' gguf==0.19.0 kvpress==0.5.5
    VENV/bin/python deploy/compare_kvpress.py MODEL.gguf TEXT [--history 1536] [--target 512] [--windows 8]
"""
import argparse
import fractions
import math
import os

import torch
from kvpress import KnormPress, ObservedAttentionPress, SnapKVPress, StreamingLLMPress
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def presses(kept):
    dropped = 1 - kept
    return {
        "StreamingLLM": StreamingLLMPress(compression_ratio=dropped, n_sink=4),
        "Knorm": KnormPress(compression_ratio=dropped),
        "ObservedAttention (H2O)": ObservedAttentionPress(compression_ratio=dropped),
        "SnapKV, window 32": SnapKVPress(compression_ratio=dropped, window_size=32),
        "SnapKV, window 64": SnapKVPress(compression_ratio=dropped, window_size=64),
    }


@torch.no_grad()
def sum_of_logprobs(model, history, target, press):
    cache = DynamicCache()
    if press is None:
        first = model(history, past_key_values=cache).logits[:, -1:]
    else:
        with press(model):
            first = model(history, past_key_values=cache).logits[:, -1:]
    positions = torch.arange(history.shape[1], history.shape[1] + target.shape[1])[None]
    logits = model(target, past_key_values=cache, position_ids=positions).logits
    logprobs = torch.log_softmax(torch.cat([first, logits[:, :-1]], 1).float(), -1)
    return logprobs.gather(-1, target[..., None]).sum().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--history", type=int, default=1536)
    parser.add_argument("--target", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--kept", default="1/2", help="shares of the history, with commas between")
    arguments = parser.parse_args()
    folder, file = os.path.split(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # Only eager attention shows the weights that ObservedAttention needs.
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager").eval()
    with open(arguments.text, encoding="utf-8") as text:
        ids = tokenizer(text.read(), return_tensors="pt", add_special_tokens=False).input_ids
    size = arguments.history + arguments.target
    last = ids.shape[1] - size
    starts = [0] if arguments.windows == 1 else [
        i * last // (arguments.windows - 1) for i in range(arguments.windows)]
    rows = [("full", None)]
    for name in arguments.kept.split(","):
        kept = float(fractions.Fraction(name))
        rows += [(f"{press} {name}", made) for press, made in presses(kept).items()]
    print(f"{ids.shape[1]} tokens, {len(starts)} windows of {arguments.history} + {arguments.target}")
    full = None
    for name, press in rows:
        total = sum(
            sum_of_logprobs(model, ids[:, start:start + arguments.history],
                            ids[:, start + arguments.history:start + size], press)
            for start in starts)
        perplexity = math.exp(-total / (len(starts) * arguments.target))
        full = full or perplexity
        print(f"{name:28} {perplexity:8.3f} {100 * (perplexity / full - 1):+7.1f} %", flush=True)


if __name__ == "__main__":
    main()

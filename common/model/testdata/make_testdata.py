"""Makes tiny random models in Hugging Face form and what transformers answers for them, float32.

Run: python make_testdata.py   (torch 2.11.0, transformers 5.x; seeds are below, so a second run gives
the same files). Each folder <case>/ holds config.json and model.safetensors; expected.safetensors
holds for every case the token ids ("<case>.ids") and the logits of all positions
("<case>.logits"), and for llama_llama3 also ("llama_llama3.streaming") those of a StreamingLLM cache of
3 sinks and 9 recent entries, computed below in the paper's form: after each token the cache is cut,
and keys and query are rotated at their places in the cache. The tests compare with a tolerance of 1e-4: both sides compute in float32 in
different orders, on logits of size about 1.
"""
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

HERE = pathlib.Path(__file__).parent
NUM_TOKENS = 40
SMALL = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


def llama(**more):
    return LlamaConfig(**{**SMALL, **more})


def rope(kind, **more):
    return dict(rope_type=kind, rope_theta=10000.0, **more)


CASES = {
    # Grouped queries, an untied head, and a head size that is not hidden / heads (as in all cases).
    "llama_gqa": llama(tie_word_embeddings=False),
    # Biases of all attention and MLP products, tied embeddings, no grouping.
    "llama_bias": llama(
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=4
    ),
    "llama_linear": llama(rope_parameters=rope("linear", factor=4.0)),
    "llama_llama3": llama(
        rope_parameters=rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        )
    ),
    "llama_yarn": llama(
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    # Beyond 16 tokens the base grows. Fed one token at a time, as in decoding.
    "llama_dynamic": llama(
        max_position_embeddings=16, rope_parameters=rope("dynamic", factor=4.0)
    ),
    # Every layer sees the 7 latest tokens.
    "mistral_window": MistralConfig(**SMALL, sliding_window=7),
    # q, k and v with biases; the second layer has a window of 9.
    "qwen2_window": Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
}


@torch.no_grad()
def logits_of(model, ids, one_by_one):
    if not one_by_one:
        return model(ids[None], use_cache=False).logits[0]
    rows, cache = [], None
    for t in range(len(ids)):
        out = model(ids[None, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, 0])
    return torch.stack(rows)


@torch.no_grad()
def streaming_logits(model, ids, sinks, recent):
    """One token at a time through a cache of unrotated keys, positions counted within the cache."""
    base = model.model
    caches = [([], []) for _ in base.layers]
    rows = []
    for token in ids:
        hidden = base.embed_tokens(token[None, None])  # [1, 1, hidden]
        for layer, (keys, values) in zip(base.layers, caches):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            shape = (1, 1, -1, attention.head_dim)
            query = attention.q_proj(normed).view(shape).transpose(1, 2)  # [1, H, 1, D]
            keys.append(attention.k_proj(normed).view(shape).transpose(1, 2))
            values.append(attention.v_proj(normed).view(shape).transpose(1, 2))
            if len(keys) > sinks + recent:
                del keys[sinks], values[sinks]
            size = len(keys)
            cos, sin = base.rotary_emb(normed, torch.arange(size)[None])
            key = torch.cat(keys, 2)
            _, key = apply_rotary_pos_emb(key, key, cos, sin)
            query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
            groups = query.shape[1] // key.shape[1]
            key = key.repeat_interleave(groups, 1)
            value = torch.cat(values, 2).repeat_interleave(groups, 1)
            weights = (query @ key.transpose(2, 3) / attention.head_dim**0.5).softmax(-1)
            out = (weights @ value).transpose(1, 2).reshape(1, 1, -1)
            hidden = hidden + attention.o_proj(out)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        rows.append(model.lm_head(base.norm(hidden))[0, 0])
    return torch.stack(rows)


def main():
    expected = {}
    for seed, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter_name, parameter in model.named_parameters():
            # transformers starts biases at 0 and norms at 1: then mistakes with them don't show.
            if parameter.dim() == 1:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
            # A bfloat16 file, computed in float32: half the size, and types other than float32 read.
            # Not model.to(bfloat16): that would round the rotary frequencies too.
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
        ids = torch.randint(0, config.vocab_size, (NUM_TOKENS,))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        tied = config.tie_word_embeddings
        tensors = {
            key: value.to(torch.bfloat16).contiguous()
            for key, value in model.state_dict().items()
            if not (tied and key == "lm_head.weight")
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        text = config.to_json_string(use_diff=False)
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in json.loads(text).items() if v is not None}, indent=1) + "\n"
        )
        logits = logits_of(model, ids, one_by_one=name == "llama_dynamic")
        expected[f"{name}.ids"] = ids.to(torch.int32)
        expected[f"{name}.logits"] = logits.contiguous()
        if name == "llama_llama3":
            # With room for all, the cache's form must give what the model gives.
            torch.testing.assert_close(streaming_logits(model, ids, 3, NUM_TOKENS), logits)
            streaming = streaming_logits(model, ids, sinks=3, recent=9)
            expected[f"{name}.streaming"] = streaming.contiguous()
        print(name, float(logits.abs().mean()), logits.argmax(-1)[:8].tolist())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(expected, HERE / "expected.safetensors", metadata=versions)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the files beside it, from the published Python packages, for the tests of common/weights.

Made with: gguf 0.19.0, safetensors 0.8.0, transformers 5.23.0, numpy 2.4.6 (seed 7). Run in a fresh
virtual environment that has these; the outputs are committed, so the build needs none of them.

  quants.gguf               every metadata type and every tensor type, blocks of random bits
  quants.safetensors        the same tensors as float32, by gguf's own dequantisers
  types.safetensors         every plain type that numpy can write, and metadata
  tiny_llama/               a two-layer Llama with llama3 rope, float16 and float32, in two shards
  tiny_llama.gguf           the same model as a converter writes it: q and k rows permuted, the rope
                            scaling as a tensor of factors
  configs.json              config.json of published models (their values, shortened to the keys
                            that matter) and what transformers reads from them
  rope.json                 inverse frequencies and attention factors by transformers' own functions
"""

import json
import pathlib
import shutil

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import save_file
from transformers import AutoConfig, modeling_rope_utils
from transformers.models.llama.configuration_llama import LlamaConfig

HERE = pathlib.Path(__file__).parent
Q = gguf.GGMLQuantizationType
random = np.random.default_rng(7)


def half_bytes(count, low=0.01, high=0.1):
    return random.uniform(low, high, count).astype(np.float16).view(np.uint8).reshape(count, 2)


def random_blocks(kind, rows, blocks):
    """Blocks of random bits; only the half-precision scales are made small finite numbers."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    scale_at = {Q.Q6_K: [208]}.get(kind, [0])
    if kind in (Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K):
        scale_at = [0, 2]
    for at in scale_at:
        data[:, at : at + 2] = half_bytes(rows * blocks)
    return data.reshape(rows, blocks * size)


def make_quants():
    writer = gguf.GGUFWriter(HERE / "quants.gguf", "test")
    writer.add_uint8("test.uint8", 200)
    writer.add_int8("test.int8", -100)
    writer.add_uint16("test.uint16", 60000)
    writer.add_int16("test.int16", -30000)
    writer.add_uint32("test.uint32", 4000000000)
    writer.add_int32("test.int32", -2000000000)
    writer.add_uint64("test.uint64", 2**63 + 1)
    writer.add_int64("test.int64", -(2**62))
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "grüße, 世界")
    writer.add_array("test.strings", ["a", "", "Ġthe", "世界"])
    writer.add_array("test.floats", [1.5, -2.5])
    writer.add_array("test.ints", [3, 1, -2])
    writer.add_array("test.bools", [True, False, True])
    expected = {}
    for kind in (Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K):
        name = f"tensor.{kind.name}"
        if kind == Q.F32:
            data = random.standard_normal((3, 5)).astype(np.float32)
            values = data
        elif kind == Q.F16:
            # Subnormals, infinities and both zeros among them.
            special = np.array([0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0xFC00], np.uint16)
            data = np.concatenate([special, random.integers(0, 0x7C00, 23).astype(np.uint16)])
            data = data.view(np.float16).reshape(2, 16)
            values = data.astype(np.float32)
        elif kind == Q.BF16:
            data = random.integers(0, 0x7F80, (2, 16)).astype(np.uint16).view(np.uint8)
            values = dequantize(data, kind)
        else:
            data = random_blocks(kind, rows=3, blocks=2)
            values = dequantize(data, kind)
        raw = None if kind in (Q.F32, Q.F16) else kind
        writer.add_tensor(name, data, raw_dtype=raw)
        expected[name] = np.ascontiguousarray(values, dtype=np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, HERE / "quants.safetensors")


def make_types():
    tensors = {
        "u8": np.arange(3, dtype=np.uint8),
        "bool": np.array([[True], [False]]),
        "i8": np.array([-1, 2], np.int8),
        "i16": np.array([-300], np.int16),
        "i32": np.array([-70000, 70000], np.int32),
        "i64": np.array([2**40], np.int64),
        "f16": np.array([1.5, -0.25], np.float16),
        "f32": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "f64": np.array(0.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, HERE / "types.safetensors", metadata={"format": "np", "note": "grüße"})


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "vocab_size": 48,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}


def make_tiny_llama():
    def weight(*shape):
        return (random.standard_normal(shape) * 0.1).astype(np.float16)

    hidden, inner, vocab = 32, 40, 48
    tensors = {"model.embed_tokens.weight": weight(vocab, hidden), "lm_head.weight": weight(vocab, hidden)}
    tensors["model.norm.weight"] = random.uniform(0.5, 1.5, hidden).astype(np.float32)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = random.uniform(0.5, 1.5, hidden).astype(np.float32)
        tensors[prefix + "self_attn.q_proj.weight"] = weight(32, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = weight(16, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = weight(16, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = weight(hidden, 32)
        tensors[prefix + "mlp.gate_proj.weight"] = weight(inner, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = weight(inner, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = weight(hidden, inner)

    folder = HERE / "tiny_llama"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY, indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 5]}\n')
    shards = ({}, {})
    for name, tensor in tensors.items():
        shards["layers.1" in name or "lm_head" in name][name] = tensor
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map.update({name: file_name for name in shard})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    writer = gguf.GGUFWriter(HERE / "tiny_llama.gguf", "llama")
    writer.add_name("Tiny")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in tensors.items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        if heads:  # the row order that converters give to Llama's q and k
            tensor = (
                tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, hidden).swapaxes(1, 2).reshape(tensor.shape)
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(tensor))
    plain, _ = rope({"rope_type": "linear", "factor": 1.0, "rope_theta": 500000.0}, 8, 512, None)
    scaled, _ = rope(LLAMA3 | {"rope_theta": 500000.0}, 8, 512, None)
    factors = np.array(plain, np.float32) / np.array(scaled, np.float32)
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class NumpyTorch:
    """The few functions that transformers' rope code calls, on float32 numpy arrays."""

    class Tensor(np.ndarray):
        def to(self, device=None, dtype=None):
            return self if dtype is None else self.astype(dtype)

        def float(self):
            return self.astype(np.float32)

    float = float32 = np.float32
    int64 = np.int64

    @classmethod
    def arange(cls, *args, dtype=np.int64, device=None):
        return np.arange(*args, dtype=dtype).view(cls.Tensor)

    where = staticmethod(np.where)
    clamp = staticmethod(np.clip)


modeling_rope_utils.torch = NumpyTorch


def rope(parameters, head_size, context, length):
    config = LlamaConfig(
        hidden_size=head_size * 4,
        num_attention_heads=4,
        max_position_embeddings=context,
        rope_parameters=dict(parameters),
    )
    function = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = function(config, None, seq_len=length)
    assert frequencies.dtype == np.float32
    return [float(value) for value in frequencies], float(factor)


def make_rope():
    theta = {"rope_theta": 10000.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096} | theta
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    cases = [
        # The plain formula is linear scaling by 1.
        ({"rope_type": "linear", "factor": 1.0} | theta, 64, 2048, None),
        ({"rope_type": "linear", "factor": 1.0, "rope_theta": 1000042.0}, 256, 2048, None),
        ({"rope_type": "linear", "factor": 2.5} | theta, 128, 4096, None),
        ({"rope_type": "dynamic", "factor": 2.0} | theta, 64, 2048, 100),
        ({"rope_type": "dynamic", "factor": 2.0} | theta, 64, 2048, 2049),
        ({"rope_type": "dynamic", "factor": 4.0} | theta, 128, 2048, 20000),
        (yarn, 128, 16384, None),
        (yarn | {"rope_theta": 1e6, "original_max_position_embeddings": 32768}, 128, 131072, None),
        (yarn | {"attention_factor": 1.25}, 64, 16384, None),
        (yarn | {"beta_fast": 128.0, "beta_slow": 2.0}, 64, 16384, None),
        (yarn | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7}, 64, 163840, None),
        (yarn | {"truncate": False}, 64, 16384, None),
        (yarn | {"factor": 1.0}, 64, 4096, None),
        # A range that collapses, so that the ramp is a step.
        (yarn | {"beta_fast": 1e5, "beta_slow": 9e4}, 16, 16384, None),
        (llama3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}, 128, 131072, None),
        (llama3 | {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}, 64, 131072, None),
    ]
    out = []
    for parameters, head_size, context, length in cases:
        frequencies, factor = rope(parameters, head_size, context, length)
        out.append(
            {
                "rope_parameters": parameters,
                "head_dim": head_size,
                "max_position_embeddings": context,
                "num_tokens": length or 0,
                "inverse_frequencies": frequencies,
                "attention_factor": factor,
            }
        )
    (HERE / "rope.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")


def sizes(hidden, inner, layers, heads, kv_heads, vocab, context):
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }


CONFIGS = {
    "Llama-2-7b": {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": None, "hidden_act": "silu"}
    | sizes(4096, 11008, 32, 32, 32, 32000, 4096),
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }
    | sizes(4096, 14336, 32, 32, 8, 128256, 131072),
    "Llama-3.2-1B": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "head_dim": 64,
        "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "tie_word_embeddings": True,
    }
    | sizes(2048, 8192, 16, 32, 8, 128256, 131072),
    "Mistral-7B-v0.1": {"model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096}
    | sizes(4096, 14336, 32, 32, 8, 32000, 32768),
    "Mistral-7B-v0.3": {"model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None}
    | sizes(4096, 14336, 32, 32, 8, 32768, 32768),
    "Mistral-Nemo": {"model_type": "mistral", "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None}
    | sizes(5120, 14336, 40, 32, 8, 131072, 131072),
    "Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 21,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    | sizes(896, 4864, 24, 14, 2, 151936, 32768),
    "Qwen2-sliding-yarn": {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": 1024,
        "max_window_layers": 3,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }
    | sizes(896, 4864, 8, 14, 2, 151936, 32768),
    "Falcon3-1B-Instruct": {
        "model_type": "llama",
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000042,
        "eos_token_id": 11,
        "attention_bias": False,
        "mlp_bias": False,
    }
    | sizes(2048, 8192, 18, 8, 4, 131072, 8192),
    "SmolLM2-135M": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "rope_interleaved": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    | sizes(576, 1536, 30, 9, 3, 49152, 8192),
    "old-style-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    | sizes(64, 128, 2, 4, 4, 100, 2048),
    "new-style-dynamic": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 20000.0},
    }
    | sizes(64, 128, 2, 4, 4, 100, 2048),
    "defaults": {"model_type": "llama"}
    | {k: v for k, v in sizes(64, 128, 2, 4, 4, 100, 0).items() if k not in ("num_key_value_heads", "max_position_embeddings")},
    "defaults-mistral": {"model_type": "mistral"}
    | {k: v for k, v in sizes(256, 128, 2, 16, 0, 100, 0).items() if k not in ("num_key_value_heads", "max_position_embeddings")},
    "defaults-qwen2": {"model_type": "qwen2"}
    | {k: v for k, v in sizes(256, 128, 2, 32, 0, 100, 0).items() if k not in ("num_key_value_heads", "max_position_embeddings")},
}


def make_configs():
    out = []
    for name, raw in CONFIGS.items():
        raw = json.loads(json.dumps(raw))
        config = AutoConfig.for_model(**json.loads(json.dumps(raw)))
        windows = [0] * config.num_hidden_layers
        if raw["model_type"] == "mistral" and config.sliding_window:
            windows = [config.sliding_window] * config.num_hidden_layers
        if raw["model_type"] == "qwen2":
            windows = [config.sliding_window if kind == "sliding_attention" else 0 for kind in config.layer_types]
        eos = config.eos_token_id
        out.append(
            {
                "name": name,
                "config": raw,
                "expected": {
                    key: getattr(config, key)
                    for key in (
                        "hidden_size",
                        "intermediate_size",
                        "num_hidden_layers",
                        "num_attention_heads",
                        "num_key_value_heads",
                        "vocab_size",
                        "max_position_embeddings",
                        "rms_norm_eps",
                        "tie_word_embeddings",
                        "rope_parameters",
                        "bos_token_id",
                    )
                }
                | {
                    "head_dim": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
                    "eos_token_ids": [] if eos is None else eos if isinstance(eos, list) else [eos],
                    "attention_bias": getattr(config, "attention_bias", False),
                    "mlp_bias": getattr(config, "mlp_bias", False),
                    "sliding_windows": windows,
                },
            }
        )
    (HERE / "configs.json").write_text(json.dumps(out, indent=1) + "\n")


make_quants()
make_types()
make_tiny_llama()
make_rope()
make_configs()

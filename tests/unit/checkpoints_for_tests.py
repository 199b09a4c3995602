"""Small checkpoints made on the spot: random weights, a real config.json, no library in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TAGS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16",
        np.dtype(np.int64): "I64", np.dtype(np.int32): "I32", np.dtype(np.uint32): "U32",
        np.dtype(np.float64): "F64"}

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
    "vocab_size": 101, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128,
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float16",
}


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a llama, names sorted as transformers writes them."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden),
                                          "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (queries, hidden),
            prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, queries),
            prefix + "mlp.gate_proj.weight": (inner, hidden), prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return dict(sorted(shapes.items()))


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float16,
                   seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)).astype(dtype)
            for name, shape in shapes.items()}


def header_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        header[name] = {"dtype": TAGS[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    return header


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], header: object = None,
                      pad_to: int = 8) -> None:
    """header: what to write instead of the true one, an object or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header or header_of(tensors)).encode()
    text += b" " * (-len(text) % pad_to)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] = TINY_LLAMA,
                     num_files: int = 1) -> Path:
    """config.json and one safetensors file, or ``num_files`` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_files == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    names = list(tensors)
    for number in range(num_files):
        file_name = f"model-{number + 1:05}-of-{num_files:05}.safetensors"
        part = names[number::num_files]
        write_safetensors(folder / file_name, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tiny_llama(folder: Path, dtype: Any = np.float16, num_files: int = 1, **changes: Any) -> Path:
    config = {**TINY_LLAMA, **changes}
    return write_checkpoint(folder, random_tensors(llama_shapes(config), dtype), config, num_files)

"""Random-weight Llama checkpoints of the two shapes that speed is measured on.

    python benchmarks/make_models.py OUT [--only S] [--gguf]

OUT/S is the seed's shape (101 M weights, untied), OUT/L a 1B-class one (1,236 M, tied), both in the Hugging
Face layout, bfloat16. --gguf also writes OUT/S-f16.gguf and OUT/L-f16.gguf, the same weights for llama.cpp
(needs the gguf package). Weights are normal with deviation 0.02; each tensor's depend on its name alone, so
every run gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Llama model; head_dim is hidden_size / num_heads."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    rope_theta: float
    context_length: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


SHAPES = {
    "S": Shape(768, 6, 24, 8, 3072, 32128, tied=False, rope_theta=10000.0, context_length=1024),
    "L": Shape(2048, 16, 32, 8, 8192, 128256, tied=True, rope_theta=500000.0, context_length=8192),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor's names in both worlds. rotated_heads: heads whose rows rope turns in pairs, or 0."""

    name: str
    gguf_name: str
    shape: tuple[int, ...]
    rotated_heads: int = 0

    def values(self) -> np.ndarray:
        if len(self.shape) == 1:
            return np.ones(self.shape, ml_dtypes.bfloat16)
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "little")
        normal = np.random.default_rng(seed).standard_normal(self.shape, dtype=np.float32)
        return (normal * np.float32(0.02)).astype(ml_dtypes.bfloat16)

    def gguf_values(self) -> np.ndarray:
        """float16, norms float32. Rope pairs rows i, i + head_dim/2 in a checkpoint, 2i, 2i + 1 in GGUF."""
        values = self.values().astype(np.float32)
        if values.ndim == 1:
            return values
        if self.rotated_heads:
            halves = values.reshape(self.rotated_heads, 2, -1, self.shape[1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(self.shape)
        return values.astype(np.float16)


def tensors(shape: Shape) -> Iterator[Tensor]:
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    kv_rows = shape.num_kv_heads * shape.head_dim
    yield Tensor("model.embed_tokens.weight", "token_embd.weight", (shape.vocab_size, hidden))
    for layer in range(shape.num_layers):
        for name, gguf_name, size, heads in (
            ("input_layernorm", "attn_norm", (hidden,), 0),
            ("self_attn.q_proj", "attn_q", (hidden, hidden), shape.num_heads),
            ("self_attn.k_proj", "attn_k", (kv_rows, hidden), shape.num_kv_heads),
            ("self_attn.v_proj", "attn_v", (kv_rows, hidden), 0),
            ("self_attn.o_proj", "attn_output", (hidden, hidden), 0),
            ("post_attention_layernorm", "ffn_norm", (hidden,), 0),
            ("mlp.gate_proj", "ffn_gate", (intermediate, hidden), 0),
            ("mlp.up_proj", "ffn_up", (intermediate, hidden), 0),
            ("mlp.down_proj", "ffn_down", (hidden, intermediate), 0),
        ):
            stem, gguf_stem = f"model.layers.{layer}.{name}", f"blk.{layer}.{gguf_name}"
            yield Tensor(f"{stem}.weight", f"{gguf_stem}.weight", size, heads)
    yield Tensor("model.norm.weight", "output_norm.weight", (hidden,))
    if not shape.tied:
        yield Tensor("lm_head.weight", "output.weight", (shape.vocab_size, hidden))


def write_checkpoint(folder: Path, shape: Shape) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": shape.context_length,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors(shape):
        nbytes = 2 * int(np.prod(tensor.shape))
        span = [offset, offset + nbytes]
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": span}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors(shape):
            file.write(tensor.values().tobytes())


def write_gguf(path: Path, shape: Shape) -> None:
    import gguf  # needed here only; a checkpoint alone can do without

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.num_layers)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    for tensor in tensors(shape):
        writer.add_tensor(tensor.gguf_name, tensor.gguf_values())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--gguf", action="store_true")
    options = parser.parse_args()
    for name, shape in SHAPES.items():
        if options.only in (None, name):
            write_checkpoint(options.out / name, shape)
            if options.gguf:
                write_gguf(options.out / f"{name}-f16.gguf", shape)
            weights = sum(int(np.prod(tensor.shape)) for tensor in tensors(shape))
            print(f"{options.out / name}: {weights:,} weights")


if __name__ == "__main__":
    main()

"""A random checkpoint of the seed's shape converts to the seed's manifest, field for field, md5sum aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kumquant.convert import convert

SEED = Path(__file__).parents[2].parent / "shared" / "seed" / "ndarray-cache-b16.json"
pytestmark = pytest.mark.skipif(not SEED.is_file(), reason="skipped: no ../shared/seed")

# Felladrin/Smol-Llama-101M-Chat-v1, whose shape the seed has.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 24, "num_key_value_heads": 8,
    "hidden_act": "silu", "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "vocab_size": 32128, "tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": 1,
    "eos_token_id": 2,
}


def seed_shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner, keys, vocab = 768, 3072, 8 * 32, 32128
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocab, hidden), "model.norm.weight": (hidden,),
                                          "model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(6):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden), prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return dict(sorted(shapes.items()))


def write_random_checkpoint(folder: Path) -> None:
    """float16 weights, names sorted as transformers sorts them. Values repeat one random block."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, offset = {}, 0
    for name, shape in seed_shapes().items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype(np.float16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(block)):
            file.write(block[: offset - start])


def without_md5sums(path: Path) -> str:
    """The manifest's own text, order of keys included."""
    manifest = json.loads(path.read_text())
    for shard in manifest["records"]:
        assert len(shard.pop("md5sum")) == 32
    return json.dumps(manifest, indent=1)


def test_seed_manifest(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", "q4f32_1", legacy_names=True)
    assert without_md5sums(tmp_path / "out" / "ndarray-cache-b16.json") == without_md5sums(SEED)
    assert without_md5sums(tmp_path / "out" / "tensor-cache-b16.json") == without_md5sums(SEED)
    assert (report.bits_per_parameter, report.shards, report.records) == (5.002662055470865, 2, 65)
    assert round(report.stored_bits_per_parameter, 4) == 4.5011

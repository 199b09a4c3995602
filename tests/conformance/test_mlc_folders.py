"""Folders as MLC makes them run: the reference caches with a mlc-chat-config.json beside them and no config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kumquant import LLM, SamplingParams, TensorCache
from kumquant.runtime.reference import forward
from kumquant.schemes import SCHEMES

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
CACHES = sorted(
    f"{path.parent.name}/{path.name}" for path in CASES.glob("*/cache-*")
    if path.parent.name.startswith(("llama", "qwen2")) and path.name.removeprefix("cache-") in SCHEMES
)
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="skipped: ../shared/conformance is not there")
# The reference rounds each product code * scale to the model dtype, Kumquant does not. It only shows where the
# product does not fit the dtype: with 16-bit scales (docs/format.md, "Decoding").
TOLERANCES = {"float16": 5e-3, "bfloat16": 3e-2, "float32": 1e-5}


def tolerance(mode: str) -> float:
    return TOLERANCES[SCHEMES[mode].model_dtype] if SCHEMES[mode].is_quantized else 1e-5


def mlc_folder(tmp_path: Path, cache: str, *, old: bool) -> Path:
    """A copy of a reference cache as MLC of today leaves it, or as of 2023: old manifest name, named template."""
    case, name = cache.split("/")
    folder = Path(shutil.copytree(CASES / cache, tmp_path / name))
    source = json.loads((CASES / case / "hf" / "config.json").read_text())
    keys = ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps",
            "vocab_size", "num_key_value_heads"]
    model_config = {key: source[key] for key in keys}
    model_config["rope_theta" if source["model_type"] == "qwen2" else "position_embedding_base"] = 10000
    model_config |= {"context_window_size": 256, "prefill_chunk_size": 256, "tensor_parallel_shards": 1}
    if not old:
        model_config |= {"tie_word_embeddings": source["tie_word_embeddings"], "rope_scaling": None,
                         "max_batch_size": 128}
    content = {
        "model_type": source["model_type"], "quantization": name.removeprefix("cache-"), "model_config": model_config,
        "vocab_size": source["vocab_size"], "context_window_size": 256, "sliding_window_size": -1,
        "conv_template": "llama-2" if old else {"roles": {"user": "", "assistant": ""}, "seps": [""]},
    }
    (folder / "mlc-chat-config.json").write_text(json.dumps(content))
    if old:
        (folder / "tensor-cache.json").rename(folder / "ndarray-cache.json")
    return folder


@pytest.mark.parametrize("old", [False, True], ids=["today", "2023"])
@pytest.mark.parametrize("cache", CACHES)
def test_logits_of_a_folder_of_mlcs(tmp_path, cache, old):
    folder = mlc_folder(tmp_path, cache, old=old)
    case, mode = cache.replace("cache-", "").split("/")
    reference = np.load(CASES / case / "reference.npz")
    tokens = [int(token) for token in reference["input_ids"].ravel()]
    stored = TensorCache.open(folder)
    stored.verify()
    with LLM(folder, threads=1) as llm:
        logits = llm.logits(tokens, activations="float32")
        assert llm.generate([tokens], SamplingParams(max_tokens=2, temperature=0))[0].token_ids
    expected = reference[f"logits_{mode}"].reshape(logits.shape)
    scale = np.abs(expected).max()
    assert np.abs(logits - expected).max() <= tolerance(mode) * scale
    exact = forward(stored.spec, {tensor.name: stored.dequantize(tensor.name) for tensor in stored.plan}, tokens)
    assert np.abs(logits - exact).max() <= 1e-5 * scale

"""Modes that are read but not written: float8 caches and caches of unknown models open, verify and dequantize."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kumquant import LLM, TensorCache
from kumquant.cli import main
from kumquant.errors import TensorCacheError, UnsupportedError
from kumquant.models import describe
from kumquant.quant import quantize
from kumquant.schemes import SCHEMES, scheme_named
from kumquant.tensor_cache import decode_blocks, verify, write_cache

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
STEM = "model.layers.0.mlp.down_proj"


def folder_of(path: Path, mode: str, tensors: dict[str, np.ndarray], **model_config: object) -> Path:
    """A cache with the head of a mlc-chat-config.json; the model's dimensions are nowhere."""
    write_cache(path, {**tensors, "model.norm.weight": np.ones(4, np.float16)})
    content = {"model_type": "some-model", "quantization": mode, "model_config": model_config}
    (path / "mlc-chat-config.json").write_text(json.dumps(content))
    return path


def numbers(dtype: object, *shape: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 20).astype(dtype)


@pytest.mark.parametrize("mode, tensors", [
    ("e5m2_e5m2_f16", {"q_weight": numbers(E5M2, 6, 8)}),
    ("e4m3_e4m3_f16", {"q_weight": numbers(E4M3, 6, 8), "q_scale": np.array([0.0123], np.float32),
                       "q_calibration_scale": np.array([7.0], np.float32)}),
    ("e4m3_e4m3_f16_max_calibrate", {"q_weight": numbers(E4M3, 2, 6, 8), "q_scale": np.array([3e-4], np.float32)}),
])
def test_float8(tmp_path: Path, mode: str, tensors: dict[str, np.ndarray]) -> None:
    folder = folder_of(tmp_path / "cache", mode, {f"{STEM}.{part}": array for part, array in tensors.items()})
    verify(folder)
    cache = TensorCache.open(folder)
    assert cache.scheme is SCHEMES[mode] and describe(cache.manifest).quantization == mode
    stored = cache[f"{STEM}.q_weight"]
    assert stored.dtype == tensors["q_weight"].dtype and stored.tobytes() == tensors["q_weight"].tobytes()
    scale = np.float32(1)
    if "q_scale" in tensors:  # float32 is stored as bfloat16, and float16 before it is used
        scale = np.float32(np.float16(np.float32(tensors["q_scale"][0].astype(ml_dtypes.bfloat16))))
    assert np.array_equal(cache.dequantize(f"{STEM}.weight"), stored.astype(np.float32) * scale)
    assert np.array_equal(cache.dequantize("model.norm.weight"), np.ones(4, np.float32))


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("leading", [(), (3,)], ids=["linear", "experts"])
def test_float8_with_a_scale_for_each_block(tmp_path: Path, leading: tuple[int, ...], is_static: bool) -> None:
    mode = "fp8_e4m3fn_bf16_block_scale" + ("_static_activation" if is_static else "")
    values = numbers(E4M3, *leading, 37, 50)
    scales = np.random.default_rng(2).random((*leading, 3, 4), np.float32).astype(ml_dtypes.bfloat16)
    tensors = {f"{STEM}.weight": values, f"{STEM}.weight_scale_inv": scales.astype(np.float32)}
    if is_static:
        tensors[f"{STEM}.activation_scale"] = np.ones(4, np.float32)
    folder = folder_of(tmp_path / "cache", mode, tensors, weight_block_size=[16, 13])
    verify(folder)
    cache = TensorCache.open(folder)
    assert cache.scheme is SCHEMES[mode] and describe(cache.manifest).quantization == mode
    expected = values.astype(np.float32)
    for row, column in np.ndindex(37, 50):
        expected[..., row, column] *= scales[..., row // 16, column // 13].astype(np.float32)
    assert np.array_equal(cache.dequantize(f"{STEM}.weight"), expected)
    assert np.array_equal(cache.dequantize(STEM), expected)


def test_the_block_size_is_128_by_default_and_checked(tmp_path: Path) -> None:
    values, scales = numbers(E4M3, 130, 128), np.full((2, 1), 0.5, np.float32)
    folder = folder_of(tmp_path / "cache", "fp8_e4m3fn_bf16_block_scale",
                       {f"{STEM}.weight": values, f"{STEM}.weight_scale_inv": scales})
    assert np.array_equal(TensorCache.open(folder).dequantize(STEM), values.astype(np.float32) / 2)
    with pytest.raises(TensorCacheError, match=r"blocks of 64 by 128; found .* expected scales \(3, 1\)"):
        decode_blocks(values, scales, (64, 128))
    for size in ([0, 128], [128], "128", [True, 4], None):
        (folder / "config.json").write_text(json.dumps({"quantization_config": {"weight_block_size": size}}))
        assert TensorCache.open(folder).dequantize(STEM).shape == (130, 128)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_float8_number_is_what_it_is(tmp_path: Path, dtype: type) -> None:
    every = np.arange(256, dtype=np.uint8).view(dtype)
    mode = "e5m2_e5m2_f16" if dtype is E5M2 else "e4m3_e4m3_f16"
    folder = folder_of(tmp_path / "cache", mode, {f"{STEM}.q_weight": every.reshape(16, 16)})
    found = TensorCache.open(folder).dequantize(STEM).reshape(-1)
    assert np.array_equal(found, every.astype(np.float32), equal_nan=True)


def test_float8_is_not_run(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "cache", "e5m2_e5m2_f16", {f"{STEM}.q_weight": numbers(E5M2, 6, 8)})
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
              "num_attention_heads": 1, "vocab_size": 8, "max_position_embeddings": 16, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="e5m2_e5m2_f16: this mode can be read, but not run"):
        LLM(folder)


def test_a_mode_that_is_tied_to_one_gpu_is_recognized_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "cache", "q4f16_ft", {f"{STEM}.q_weight": np.zeros((8, 4), np.int8),
                                                       f"{STEM}.q_scale": np.ones((1, 8), np.float16)})
    with pytest.raises(UnsupportedError, match=r"q4f16_ft: this mode is not portable: its codes are permuted"):
        TensorCache.open(folder).dequantize(STEM)
    assert TensorCache.open(folder)[f"{STEM}.q_weight"].shape == (8, 4)
    assert main(["verify", str(folder)]) == 0
    assert main(["inspect", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "ok: 1 shard, 3 tensors" in captured.out and "q4f16_ft: this mode is not portable" in captured.err
    with pytest.raises(UnsupportedError, match="not portable"):
        scheme_named("q4f16_ft")


@pytest.mark.parametrize("mode", ["q3f16_0", "q3f16_1", "q4bf16_0", "q8f16_1"])
def test_caches_of_unknown_models_dequantize(tmp_path: Path, mode: str) -> None:
    scheme = SCHEMES[mode]
    weight = np.random.default_rng(3).standard_normal((12, 80)).astype(np.float32)
    codes, scales = quantize(weight, scheme)
    table_codes, table_scales = quantize(weight, scheme.for_kind("embedding"))
    folder = folder_of(tmp_path / "cache", mode, {
        f"{STEM}.q_weight": codes, f"{STEM}.q_scale": scales,
        "embeddings.q_weight": table_codes, "embeddings.q_scale": table_scales})
    cache = TensorCache.open(folder)
    assert describe(cache.manifest).quantization in (mode, mode.replace("q3", "q4"))
    for name in (STEM, "embeddings"):
        found = cache.dequantize(f"{name}.weight")[:, :80]
        assert np.abs(found - weight).max() < {3: 0.6, 4: 0.3, 8: 0.02}[scheme.bits]

"""kumquant models: the tables of families and modes, and that they tell the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from test_native_runtime import run_in_chunks

from kumquant import LLM, TensorCache
from kumquant.cli import main
from kumquant.convert import convert
from kumquant.errors import UnsupportedError
from kumquant.models import FAMILIES, support
from kumquant.runtime import Model
from kumquant.runtime.reference import forward
from kumquant.schemes import SCHEMES, scheme_named


def test_every_family_and_mode_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*FAMILIES, *(mode.name for mode in support().modes if mode.run)):
        assert sum(line.split(" ")[0] == name for line in lines) == 1, name
    words = " ".join(lines).replace(",", "").split()
    assert all(words.count(name) == 1 for name in SCHEMES)
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["q4f32_1", "4", "32", "float32", "NK", "quantized", "yes", "yes", "yes"]
               for line in lines)
    assert "known and refused: q4f16_ft" in lines


def test_what_it_says_of_modes_is_what_convert_does(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    for mode in support().modes:
        if mode.convert == "yes":
            assert convert(source, tmp_path / mode.name, mode.name).quantization == mode.name
        else:
            with pytest.raises(UnsupportedError, match=mode.name):
                convert(source, tmp_path / mode.name, mode.name)


@pytest.mark.parametrize("mode", [name for name, scheme in SCHEMES.items()
                                  if scheme.can_run and scheme.can_convert and scheme.storage in ("plain", "groups")])
def test_single_tokens_on_two_threads_give_the_bits_of_a_prompt_on_one(tmp_path: Path, mode: str) -> None:
    """Heads of whole panels: a thread goes on from a kv head's product to its attention, in every layout of panels."""
    convert(tiny_llama(tmp_path / "source", hidden_size=160, intermediate_size=200, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=48), tmp_path / "out", mode)
    one, two = (Model(TensorCache.open(tmp_path / "out"), threads=threads) for threads in (1, 2))
    tokens = np.random.default_rng(0).integers(0, one.vocab_size, 30).tolist()
    want = one.logits(tokens)
    assert np.isfinite(want).all() and want.std() > 0
    assert run_in_chunks(two, tokens, [20] + [1] * 10, "int8").tobytes() == want.tobytes()


@pytest.mark.parametrize("mode", [name for name, scheme in SCHEMES.items() if scheme.storage in ("plain", "groups")])
def test_mlcs_file_alone_says_all_in_every_mode(tmp_path: Path, mode: str) -> None:
    report = convert(tiny_llama(tmp_path / "source"), tmp_path / "out", mode)
    assert any(f"do not know the mode {mode}" in warning for warning in report.warnings) == mode.startswith("q8")
    spec = TensorCache.open(tmp_path / "out").spec
    (tmp_path / "out" / "config.json").unlink()
    cache = TensorCache.open(tmp_path / "out")
    assert cache.scheme is SCHEMES[mode] and cache.spec == spec
    tokens = list(range(20))
    with LLM(tmp_path / "out", threads=1) as llm:
        exact = llm.logits(tokens, activations="float32")
        assert np.abs(llm.logits(tokens) - exact).max() <= 0.05 * np.abs(exact).max()
    weights = {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}
    assert np.abs(forward(spec, weights, tokens) - exact).max() <= 1e-5 * np.abs(exact).max()


def test_webgpu_has_neither_bfloat16_nor_float8() -> None:
    for mode in support().modes:
        assert not (mode.webllm and (mode.dtype == "bfloat16" or SCHEMES[mode.name].code_dtype != "uint32"))
        assert mode.needs in ("", "shader-f16")


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError) as caught:
        scheme_named("q5f16_1")
    assert all(name in str(caught.value) for name in SCHEMES)

"""kumquant models: the tables of families and modes, and that they tell the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints_for_tests import tiny_llama

from kumquant.cli import main
from kumquant.convert import convert
from kumquant.errors import UnsupportedError
from kumquant.models import FAMILIES, support
from kumquant.schemes import SCHEMES, scheme_named


def test_every_family_and_mode_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*FAMILIES, *SCHEMES):
        assert sum(line.split(" ")[0] == name for line in lines) == 1, name
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


def test_webgpu_has_neither_bfloat16_nor_float8() -> None:
    for mode in support().modes:
        assert not (mode.webllm and (mode.dtype == "bfloat16" or SCHEMES[mode.name].code_dtype != "uint32"))
        assert mode.needs in ("", "shader-f16")


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError) as caught:
        scheme_named("q5f16_1")
    assert all(name in str(caught.value) for name in SCHEMES)

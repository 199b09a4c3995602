"""Every reference case in every one of its modes: shards and manifests equal MLC's byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumquant.convert import convert
from kumquant.models import FAMILIES
from kumquant.schemes import SCHEMES

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="skipped: no ../shared/conformance")

GOLDEN = [
    (case, mode)
    for case in sorted(CASES.glob("*")) if case.name.split("_")[0] in FAMILIES
    for mode in SCHEMES if (case / f"cache-{mode}").is_dir()
]


def test_the_cases_are_all_there() -> None:
    assert len(GOLDEN) == len(list(CASES.glob("*/cache-*"))) - (0 if "gpt2" in FAMILIES else 3)


@pytest.mark.parametrize(("case", "mode"), GOLDEN, ids=[f"{case.name}-{mode}" for case, mode in GOLDEN])
def test_shards_and_manifests_equal(case: Path, mode: str, tmp_path: Path) -> None:
    convert(case / "hf", tmp_path / "out", mode, compat=True)
    expected = {path.name: path.read_bytes() for path in (case / f"cache-{mode}").iterdir()}
    assert "tensor-cache.json" in expected
    names = {path.name for path in (tmp_path / "out").iterdir()}
    written = {name for name in names if name.startswith(("params_", "tensor-"))}
    assert written == expected.keys()
    for name, content in expected.items():
        assert (tmp_path / "out" / name).read_bytes() == content, name


def test_compat_and_default_are_the_same_until_another_quantizer_exists(tmp_path: Path) -> None:
    source = CASES / "llama_f32_edges" / "hf"
    convert(source, tmp_path / "compat", "q4f16_1", compat=True)
    convert(source, tmp_path / "default", "q4f16_1")
    for path in (tmp_path / "compat").glob("params_*"):
        assert path.read_bytes() == (tmp_path / "default" / path.name).read_bytes()

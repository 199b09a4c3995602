"""``kumquant inspect`` and ``kumquant verify`` on every reference cache, bare as the reference left it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kumquant.cli import main
from kumquant.models import FAMILIES

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
CACHES = sorted(str(path.relative_to(CASES)) for path in CASES.glob("*/cache-*"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="skipped: no ../shared/conformance")


def test_the_cases_are_all_there() -> None:
    assert len(CACHES) == 46


@pytest.mark.parametrize("cache", CACHES)
def test_verify(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((CASES / cache / "tensor-cache.json").read_text())
    assert main(["verify", str(CASES / cache), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"ok": True, "shards": len(manifest["records"]), "tensors": manifest["metadata"]["ParamSize"],
                     "nbytes": sum(shard["nbytes"] for shard in manifest["records"]), "unchecked": []}


@pytest.mark.parametrize("cache", CACHES)
def test_inspect(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Family, mode and the dimensions that names and shapes give, without any config."""
    case, mode = cache.split("/cache-")
    family = json.loads((CASES / case / "meta.json").read_text())["mlc_model_type"]
    config = json.loads((CASES / case / "hf" / "config.json").read_text())
    for manifest in (CASES / cache).glob("tensor-cache*.json"):
        assert main(["inspect", str(manifest), "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        if family not in FAMILIES:
            assert found["family"] is None
            continue
        assert family in found["families"] and found["quantization"] == mode, manifest
        assert found["missing_shards"] == []
        for name, key in (("vocab_size", "vocab_size"), ("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")):
            assert found["dimensions"][name] == config.get(name, config.get(key)), name
        if family in ("llama", "qwen2"):
            assert found["dimensions"]["intermediate_size"] == config["intermediate_size"]
            assert found["dimensions"]["tie_word_embeddings"] == config["tie_word_embeddings"]
    assert main(["inspect", str(CASES / cache)]) == 0
    assert mode in capsys.readouterr().out or family not in FAMILIES

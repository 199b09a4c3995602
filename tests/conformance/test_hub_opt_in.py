"""Opt in: the published model behind the seed's manifest, converted and compared with the published
checksums.

    KUMQUANT_HUB_TEST=1 pytest -s tests/conformance/test_hub_opt_in.py            downloads about 400 MB
    KUMQUANT_HUB_TEST=/path/to/Smol-Llama-101M-Chat-v1 pytest -s tests/conformance/test_hub_opt_in.py

It reports and does not fail on other bytes: a converter of 2023 on a GPU may differ in single codes,
because GPU builds divide approximately. Records, offsets, sizes and metadata must be equal.
"""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest

from kumquant.convert import convert

MODEL = "Felladrin/Smol-Llama-101M-Chat-v1"
FILES = ("config.json", "model.safetensors")
SEED = Path(__file__).parents[2].parent / "shared" / "seed" / "ndarray-cache-b16.json"
WANTED = os.environ.get("KUMQUANT_HUB_TEST", "")
pytestmark = [
    pytest.mark.skipif(not WANTED, reason="skipped: KUMQUANT_HUB_TEST is not set"),
    pytest.mark.skipif(not SEED.is_file(), reason="skipped: no ../shared/seed"),
]


def source_folder(tmp_path: Path) -> Path:
    if WANTED != "1":
        return Path(WANTED)
    folder = tmp_path / "source"
    folder.mkdir()
    for name in FILES:
        urllib.request.urlretrieve(f"https://huggingface.co/{MODEL}/resolve/main/{name}", folder / name)
    return folder


def test_published_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(source_folder(tmp_path), tmp_path / "out", "q4f32_1", compat=True)
    written = json.loads((tmp_path / "out" / "tensor-cache-b16.json").read_text())
    published = json.loads(SEED.read_text())
    sums = [(ours.pop("md5sum"), theirs.pop("md5sum"))
            for ours, theirs in zip(written["records"], published["records"], strict=True)]
    with capsys.disabled():
        print()
        for shard, (ours, theirs) in zip(published["records"], sums, strict=True):
            verdict = "equal" if ours == theirs else "different"
            print(f"{shard['dataPath']}: md5 {ours}, published {theirs}: {verdict}")
    assert written == published

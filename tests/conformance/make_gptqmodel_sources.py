"""Writes tests/conformance/sources/gptqmodel*: the tiny llama of make_sources.py as GPTQModel leaves it.

Not part of the test run: needs gptqmodel (made with 7.7.0 on torch 2.13, its source tree on PYTHONPATH, no extension
built). Run after make_sources.py: python tests/conformance/make_gptqmodel_sources.py
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

SOURCES = Path(__file__).parent / "sources"
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "gptqmodel": {"sym": True, "desc_act": False},
    "gptqmodel-v2": {"sym": True, "desc_act": False, "format": "gptq_v2"},
    "gptqmodel-asymmetric": {"sym": False, "desc_act": False},
    "gptqmodel-desc-act": {"sym": True, "desc_act": True},
}


def write(name: str, base: Path, **options: Any) -> None:
    """The hashes are of what GPTQModel itself dequantizes, in float16."""
    quantized = GPTQModel.load(str(base), QuantizeConfig(bits=4, group_size=32, **options), device="cpu")
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(2, 24, (32,), generator=generator).tolist() for _ in range(16)]
    quantized.quantize([{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts], batch_size=1)
    folder = SOURCES / name
    shutil.rmtree(folder, ignore_errors=True)
    quantized.save(str(folder))
    if not options["desc_act"]:  # that one is refused, whatever it says
        (folder / "hashes.json").write_text(json.dumps(hashes_of(folder), indent=1))
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "hashes.json"):
            path.unlink()


def hashes_of(folder: Path) -> dict[str, str]:
    loaded = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
    return {f"{layer}.weight": hashlib.sha256(module.dequantize_weight().T.contiguous().numpy().tobytes()).hexdigest()
            for layer, module in loaded.model.named_modules() if hasattr(module, "dequantize_weight")}


def main() -> None:
    os.cpu_count = lambda: 4  # its thread pools need more than one worker
    words = Tokenizer(models.WordLevel({str(number): number for number in range(24)}, unk_token="0"))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        shutil.copytree(SOURCES / "base", base)
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="0",
                                eos_token="1").save_pretrained(base)
        for name, options in CHECKPOINTS.items():
            write(name, base, **options)


if __name__ == "__main__":
    main()

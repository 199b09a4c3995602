"""Writes tests/conformance/sources/: one tiny llama as PEFT, compressed-tensors and AutoRound leave it.

Not part of the test run: needs torch, transformers, peft, compressed-tensors and auto-round (made with 2.13, 5.23,
0.21.2, 0.20.0 and 0.16.1). Run: python tests/conformance/make_sources.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from auto_round import AutoRound
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OUT = Path(__file__).parent / "sources"
CONFIG = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=24, max_position_embeddings=64, tie_word_embeddings=False)


def model(dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).to(dtype)


def write_peft() -> None:
    adapted = get_peft_model(model(), LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj", "up_proj", "embed_tokens"],
        rank_pattern={"down_proj": 2}, alpha_pattern={"mlp.up_proj": 3}, modules_to_save=["lm_head"]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1
    adapted.save_pretrained(OUT / "peft")
    base = LlamaForCausalLM.from_pretrained(OUT / "base", dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, OUT / "peft").merge_and_unload().state_dict()
    changed = ("embed_tokens", "q_proj", "down_proj", "up_proj", "lm_head")
    np.savez_compressed(OUT / "peft" / "merged.npz", **{
        name: tensor.numpy() for name, tensor in merged.items() if any(part in name for part in changed)})


def write_compressed_tensors(folder: Path, symmetric: bool) -> None:
    """The hashes are of what the tool itself decompresses, in its bfloat16."""
    compressed = model()
    arguments = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    apply_quantization_config(compressed, QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"))
    for module in compressed.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.float().reshape(module.weight.shape[0], -1, 32)
            low, high = groups.amin(-1), groups.amax(-1)
            scale = groups.abs().amax(-1) / 7.5 if symmetric else (high - low) / 15
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
            if not symmetric:
                zero = torch.round(-8 - low / scale).clamp(-8, 7)
                module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(compressed, quantization_format="pack-quantized")
    compressor.compress_model(compressed)
    compressed.save_pretrained(folder)
    compressor.update_config(folder)
    compressor.decompress_model(compressed)
    hashes = {f"{name}.weight": hashlib.sha256(module.weight.data.view(torch.int16).numpy().tobytes()).hexdigest()
              for name, module in compressed.named_modules() if name.endswith("_proj")}
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=1))


def write_auto_round(folder: Path, packing: str) -> None:
    words = Tokenizer(models.WordLevel({str(number): number for number in range(24)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", pad_token="0")
    AutoRound(model(torch.float16), tokenizer, bits=4, group_size=32, sym=True, iters=0, device_map="cpu",
              enable_torch_compile=False, disable_opt_rtn=True).quantize_and_save(str(folder), format=packing)
    for inner in list(folder.glob("w4g32/*")):
        inner.rename(folder / inner.name)
    (folder / "w4g32").rmdir()


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    model().save_pretrained(OUT / "base")
    write_peft()
    write_compressed_tensors(OUT / "compressed-tensors", symmetric=True)
    write_compressed_tensors(OUT / "compressed-tensors-asymmetric", symmetric=False)
    write_auto_round(OUT / "auto-round", "auto_round")
    write_auto_round(OUT / "auto-round-gptq", "auto_gptq")
    write_auto_round(OUT / "auto-round-awq", "auto_awq")
    kept = {"config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "merged.npz",
            "hashes.json"}
    for path in OUT.rglob("*"):
        if path.is_file() and path.name not in kept:
            path.unlink()


if __name__ == "__main__":
    main()

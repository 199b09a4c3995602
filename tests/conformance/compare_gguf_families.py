"""Random models of each family: transformers, llama.cpp's converter and quantizer, our import, our export, llama.cpp.

Not part of the test run: needs torch, transformers, gguf, llama-cpp-python, llama.cpp's source tree (its converter) and
its program llama-quantize. Prints one line for each model (see ``HEADINGS``) and fails if one is not as it should be.
Run, with TREE/gguf-py on PYTHONPATH:
    python tests/conformance/compare_gguf_families.py --llama-cpp TREE --quantize PROGRAM [NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

import kumquant
from kumquant.export import export

SIZES = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1 + n / 10 for n in range(8)],
        "long_factor": [1.5 + n for n in range(8)], "original_max_position_embeddings": 32}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PHI3 = {**SPECIAL, "sliding_window": None}
GEMMA = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> transformers' class, its arguments
    "llama": ("LlamaConfig", {**SIZES, "rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen2 yarn": ("Qwen2Config", {**SIZES, "rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 32}),
    "gemma2": ("Gemma2Config", {**SIZES, **GEMMA, "num_hidden_layers": 3}),
    "gemma3": ("Gemma3TextConfig", {**SIZES, **GEMMA, "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {**SIZES, **PHI3, "original_max_position_embeddings": 256}),
    "phi3 longrope": ("Phi3Config", {**SIZES, **PHI3, "original_max_position_embeddings": 32, "rope_parameters": LONG}),
    "gpt2": ("GPT2Config", {"vocab_size": 272, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
                            "n_ctx": 256}),
    "gemma": ("GemmaConfig", {**SIZES, "head_dim": 16}),
    "granite": ("GraniteConfig", {**SIZES, "embedding_multiplier": 6.0, "residual_multiplier": 0.5,
                                  "attention_multiplier": 0.2, "logits_scaling": 3.0}),
    "smollm3": ("SmolLM3Config", {**SIZES, "num_hidden_layers": 5, **SPECIAL}),
    "olmo2": ("Olmo2Config", SIZES),
    "starcoder2": ("Starcoder2Config", SIZES),
    "stablelm": ("StableLmConfig", {**SIZES, "use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "phi": ("PhiConfig", {**SIZES, "num_key_value_heads": 4, "intermediate_size": 256, "partial_rotary_factor": 0.5}),
}
HEADINGS = ("model", "F16 in", "Q4_0 in", "same bytes out", "llama.cpp F32", "llama.cpp Q4_0", "llama.cpp F16",
            "safetensors out")
EXPLAINED = """
F16 in: cache records that differ between the GGUF file in F16 and the original folder, both converted to q0f16.
Q4_0 in: our logits on the Q4_0 file (q4f16_1, float32 activations) against transformers on its dequantized tensors:
  largest difference over the largest logit.
same bytes out: tensors of the Q4_0 file that its export from the cache has, bit for bit, of how many.
llama.cpp F32: our logits against llama.cpp's on the export, which llama-quantize turned into F32; as above.
llama.cpp Q4_0, F16: against llama.cpp on the exports of q4f16_1 and q0f16 as they are: correlation. llama.cpp rounds
  activations to 8 bits beside Q4_0 and to float16 beside F16.
safetensors out: our logits against those of transformers on the export of q4f16_1 to safetensors; as above.
"""
TOKENS = [5 * n % 270 + 1 for n in range(40)]
CONTEXT = 64
PAIRED = ("llama", "granite", "smollm3")  # whose queries and keys llama.cpp turns in neighboring pairs
POSITIONS = "position_embd.weight"


def make(name: str, folder: Path) -> Any:
    """A model with weights that matter, saved in float16; returned in float32."""
    kind, arguments = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**arguments)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32)
    for parameter in model.parameters():
        mean = 0.0 if parameter.ndim == 2 or "Gemma" in kind else 1.0
        torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim == 2 else 0.1, mean=mean)
    model.to(torch.float16).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_converter(folder: Path, out: Path, tree: Path) -> None:
    """llama.cpp's own, without a vocabulary."""
    sys.path[:0] = [str(tree)]
    from conversion import base, get_model_class  # the tree is an argument
    words = folder / "tokenizer.json"  # Gemma 3's converter counts them
    words.write_text(json.dumps({"model": {"vocab": {str(n): n for n in range(272)}}, "added_tokens": []}))
    converter = get_model_class(base.ModelBase.load_hparams(folder, False)["architectures"][0])
    converter.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("no_vocab")
    with contextlib.redirect_stderr(io.StringIO()):
        converter(folder, gguf.LlamaFileType.MOSTLY_F16, out).write()
    words.unlink()


def requantize(program: Path, source: Path, out: Path, kind: str) -> None:
    subprocess.run([program, "--pure", "--allow-requantize", source, out, kind], check=True, capture_output=True)


def dequantize_into(model: Any, path: Path, cache: kumquant.TensorCache) -> None:
    """Put the file's tensors, dequantized by the gguf package, into the model, under llama.cpp's own names for them.

    GPT-2's positions come from the cache, which has them in 4 bits.
    """
    reader = gguf.GGUFReader(path)
    found = {tensor.name: torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
             for tensor in reader.tensors}
    architecture = reader.get_field("general.architecture").contents()
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    if POSITIONS in found:
        found[POSITIONS] = torch.from_numpy(cache.dequantize("transformer.wpe.weight"))
    for name, parameter in model.named_parameters():
        values = found[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        if architecture in PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        elif architecture == "gpt2" and values.ndim == 2 and ".h." in name:
            values = values.T
        elif architecture.startswith("gemma") and values.ndim == 1:
            values = values - 1
        parameter.data = values.contiguous().reshape(parameter.shape)


def llama_cpp_logits(path: Path) -> np.ndarray:
    """Keys and values in float32, as we have them."""
    model = llama_cpp.Llama(str(path), verbose=False, logits_all=True, n_ctx=CONTEXT, type_k=0, type_v=0,
                            flash_attn=False)
    model.eval(TOKENS)
    return np.array(model.scores[: len(TOKENS)])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def correlation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.corrcoef(found.ravel(), expected.ravel())[0, 1])


def stored(path: Path) -> dict[str, tuple[int, bytes]]:
    """What q4f16_1 can keep: GPT-2's positions are a matrix in F32, and 4 bits in the cache."""
    return {tensor.name: (int(tensor.tensor_type), tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors
            if tensor.name != POSITIONS}


def compare(name: str, folder: Path, tree: Path, program: Path) -> tuple[list[str], bool]:
    model = make(name, folder / "hf")
    half, four = folder / "f16.gguf", folder / "q4_0.gguf"
    run_converter(folder / "hf", half, tree)
    requantize(program, half, four, "Q4_0")
    for source, out, mode in ((folder / "hf", "original", "q0f16"), (half, "half", "q0f16"), (four, "four", "q4f16_1")):
        kumquant.convert(source, folder / out, mode)
    one, other = (kumquant.TensorCache.open(folder / out) for out in ("original", "half"))
    differing = [record for record in one if one[record].tobytes() != other[record].tobytes()]

    ours = kumquant.LLM(folder / "four").logits(TOKENS, activations="float32")
    dequantize_into(model, four, kumquant.TensorCache.open(folder / "four"))
    with torch.no_grad():
        imported = difference(ours, model(torch.tensor([TOKENS])).logits[0].numpy())

    for cache in ("four", "half"):
        export(folder / cache, folder / f"{cache}-out.gguf")
    before, after = stored(four), stored(folder / "four-out.gguf")
    same = sum(after.get(tensor) == content for tensor, content in before.items())
    requantize(program, folder / "four-out.gguf", folder / "f32.gguf", "F32")
    exported = difference(ours, llama_cpp_logits(folder / "f32.gguf"))
    rounded = correlation(ours, llama_cpp_logits(folder / "four-out.gguf"))
    halves = correlation(kumquant.LLM(folder / "half").logits(TOKENS), llama_cpp_logits(folder / "half-out.gguf"))
    export(folder / "four", folder / "safetensors", "safetensors")
    back = AutoModelForCausalLM.from_pretrained(folder / "safetensors", dtype=torch.float32,
                                                attn_implementation="eager").eval()
    with torch.no_grad():
        dequantized = difference(ours, back(torch.tensor([TOKENS])).logits[0].numpy())
    is_right = (not differing and imported < 1e-5 and same == len(before) == len(after) and exported < 1e-3
                and rounded > 0.99 and halves > 0.9999 and dequantized < 1e-5)
    return [name, str(len(differing)), f"{imported:.1e}", f"{same} of {len(before)}", f"{exported:.1e}",
            f"{rounded:.4f}", f"{halves:.6f}", f"{dequantized:.1e}"], is_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="the source tree, with its folder conversion/")
    parser.add_argument("--quantize", type=Path, required=True, help="the program llama-quantize")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(EXPLAINED)
    print("| " + " | ".join(HEADINGS) + " |")
    failures = 0
    for name in args.names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            cells, is_right = compare(name, Path(folder), args.llama_cpp, args.quantize)
        failures += not is_right
        print("| " + " | ".join(cells) + " |" + ("" if is_right else "  <- not as it should be"), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

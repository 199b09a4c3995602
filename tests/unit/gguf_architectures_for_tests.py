"""The tensors and metadata of small GGUF files, for each architecture that we read and write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_for_tests import FFN, HIDDEN, LLAMA, VOCAB, llama_shapes, metadata_of

Shapes = dict[str, tuple[int, ...]]
HEAD_DIM = 16
POSITIONS = "position_embd.weight"


def gemma_shapes(architecture: str) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}{name}.weight": (HIDDEN,) for name in
                   ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")}
        shapes |= {f"{block}attn_q.weight": (HIDDEN, HIDDEN), f"{block}attn_k.weight": (32, HIDDEN),
                   f"{block}attn_v.weight": (32, HIDDEN), f"{block}attn_output.weight": (HIDDEN, HIDDEN),
                   f"{block}ffn_gate.weight": (FFN, HIDDEN), f"{block}ffn_up.weight": (FFN, HIDDEN),
                   f"{block}ffn_down.weight": (HIDDEN, FFN)}
        if architecture == "gemma3":
            shapes |= {f"{block}attn_q_norm.weight": (HEAD_DIM,), f"{block}attn_k_norm.weight": (HEAD_DIM,)}
    return shapes


def phi3_shapes(*, with_divisors: bool = True) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,),
                      "output.weight": (VOCAB, HIDDEN)}
    if with_divisors:
        shapes |= {f"rope_factors_{length}.weight": (HEAD_DIM // 2,) for length in ("short", "long")}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (HIDDEN,), f"{block}ffn_norm.weight": (HIDDEN,),
                   f"{block}attn_qkv.weight": (HIDDEN + 64, HIDDEN), f"{block}attn_output.weight": (HIDDEN, HIDDEN),
                   f"{block}ffn_up.weight": (2 * FFN, HIDDEN), f"{block}ffn_down.weight": (HIDDEN, FFN)}
    return shapes


def gpt2_shapes() -> Shapes:
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN), POSITIONS: (128, HIDDEN),
                      "output_norm.weight": (HIDDEN,), "output_norm.bias": (HIDDEN,)}
    for layer in range(2):
        for name, rows, columns in (("attn_qkv", 3 * HIDDEN, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
                                    ("ffn_up", FFN, HIDDEN), ("ffn_down", HIDDEN, FFN)):
            shapes |= {f"blk.{layer}.{name}.weight": (rows, columns), f"blk.{layer}.{name}.bias": (rows,)}
        shapes |= {f"blk.{layer}.{norm}.{kind}": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")
                   for kind in ("weight", "bias")}
    return shapes


def qwen_shapes(architecture: str) -> Shapes:
    shapes = llama_shapes()
    for layer in range(2):
        block = f"blk.{layer}."
        if architecture == "qwen2":
            shapes |= {f"{block}attn_{part}.bias": (rows,) for part, rows in (("q", HIDDEN), ("k", 32), ("v", 32))}
        else:
            shapes |= {f"{block}attn_{part}_norm.weight": (HEAD_DIM,) for part in "qk"}
    return shapes


def changed(shapes: Shapes, drop: tuple[str, ...] = (), biases: tuple[str, ...] = (),
            add: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """``shapes`` without some modules of each layer, with the biases of others and with vectors of their own."""
    module = {name: name.removesuffix(".weight").rpartition(".")[2] for name in shapes}
    kept = {name: shape for name, shape in shapes.items() if module[name] not in drop}
    kept |= {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in kept.items() if module[name] in biases}
    return kept | {f"blk.{layer}.{name}.weight": shape for name, shape in (add or {}).items() for layer in range(2)}


_NORMS = ("attn_norm", "ffn_norm", "output_norm")
_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
_LAYER_NORM: dict[str, Any] = {"attention__layer_norm_rms_epsilon": None, "attention__layer_norm_epsilon": 1e-5}

GPT2 = metadata_of("gpt2", attention__layer_norm_rms_epsilon=None, attention__layer_norm_epsilon=1e-5,
                   attention__head_count_kv=None, rope__freq_base=None, rope__dimension_count=None)
_GEMMA: dict[str, Any] = {"attention__key_length": HEAD_DIM, "attention__value_length": HEAD_DIM,
                          "attention__sliding_window": 32}

# name -> metadata, shapes
ARCHITECTURES: dict[str, tuple[dict[str, Any], Shapes]] = {
    "llama": (LLAMA, llama_shapes()),
    "llama yarn": (LLAMA | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                            "llama.rope.scaling.attn_factor": 1.5, "llama.rope.scaling.original_context_length": 32},
                   llama_shapes()),
    "llama divisors": (LLAMA | {"llama.rope.scaling.attn_factor": 1.25},
                       llama_shapes() | {"rope_freqs.weight": (HEAD_DIM // 2,)}),
    "qwen2": (metadata_of("qwen2"), qwen_shapes("qwen2")),
    "qwen3": (metadata_of("qwen3"), qwen_shapes("qwen3")),
    "gemma2": (metadata_of("gemma2", **_GEMMA, attn_logit_softcapping=40.0, final_logit_softcapping=20.0),
               gemma_shapes("gemma2")),
    "gemma3": (metadata_of("gemma3", **_GEMMA, attention__sliding_window_pattern=2, rope__freq_base_swa=5000.0),
               gemma_shapes("gemma3")),
    "gemma3 without a window": (metadata_of("gemma3", **_GEMMA | {"attention__sliding_window": 0}),
                                gemma_shapes("gemma3")),
    "phi3": (metadata_of("phi3"), phi3_shapes(with_divisors=False)),
    "phi3 longrope": (metadata_of("phi3", rope__scaling__original_context_length=16, rope__scaling__attn_factor=1.25),
                      phi3_shapes()),
    "gpt2": (GPT2, gpt2_shapes()),
    "gemma": (metadata_of("gemma", attention__key_length=HEAD_DIM), llama_shapes(tied=True)),
    "granite": (metadata_of("granite", attention__scale=0.2, logit_scale=3.0, residual_scale=0.5, embedding_scale=6.0),
                llama_shapes()),
    "smollm3": (metadata_of("smollm3"), llama_shapes(tied=True)),
    "olmo2": (metadata_of("olmo2"), changed(llama_shapes(), ("attn_norm", "ffn_norm"), add={
        "attn_q_norm": (HIDDEN,), "attn_k_norm": (32,), "post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)})),
    "starcoder2": (metadata_of("starcoder2", **_LAYER_NORM),
                   changed(llama_shapes(), ("ffn_gate",), (*_NORMS, *_LINEARS))),
    "stablelm": (metadata_of("stablelm", **_LAYER_NORM, rope__dimension_count=4), changed(llama_shapes(), (), _NORMS)),
    "phi2": (metadata_of("phi2", **_LAYER_NORM, rope__dimension_count=8),
             changed(llama_shapes(), ("ffn_gate", "ffn_norm"), (*_NORMS, *_LINEARS, "output"))),
}

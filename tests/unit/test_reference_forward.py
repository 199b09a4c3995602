"""The NumPy twin against logits that Transformers computed, and the native core against the twin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kumquant.dtypes import DTYPES
from kumquant.models import DecoderSpec, ExpertSpec, RopeSpec, TensorCache, family_of
from kumquant.runtime import Model, SamplerConfig, StepInput
from kumquant.runtime.loader import role_shapes
from kumquant.runtime.reference import forward
from kumquant.schemes import SCHEMES

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
CACHES = sorted(
    f"{path.parent.name}/{path.name}" for path in CASES.glob("*/cache-*")
    if path.parent.name.startswith(("llama", "qwen2")) and path.name.removeprefix("cache-") in SCHEMES
)


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: ../shared/conformance is not there")
def test_the_cases_are_there():
    assert len(CACHES) > 20


@pytest.mark.parametrize("cache", CACHES)
def test_logits_of_a_reference_cache(cache):
    case, name = cache.split("/")
    mode = name.removeprefix("cache-")
    config_json = json.loads((CASES / case / "hf" / "config.json").read_text())
    reference = np.load(CASES / case / "reference.npz")
    stored = TensorCache.open(CASES / cache, quantization=mode)
    family = family_of(config_json)
    config = family.config(config_json)
    weights = {}
    for tensor in family.plan(config):
        values = stored.dequantize(tensor.name)[..., :tensor.shape[-1]]
        # The reference rounds each product to the mode's dtype (docs/format.md, "Decoding").
        weights[tensor.name] = values.astype(DTYPES[SCHEMES[mode].model_dtype]).astype(np.float32)
    logits = forward(family.spec(config), weights, reference["input_ids"].ravel())
    expected = reference[f"logits_{mode}"].reshape(logits.shape)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


ROPE = RopeSpec("default", 10000.0, 12, 512, {})
LAYER_ROLES = ("attn_norm", "mlp_norm", "qkv", "o", "gate_up", "down")
# What a spec can say beyond the families of today, one trait at a time. "roles": added, "without": removed.
TRAITS = {
    "plain": {},
    "biases": {"roles": ("qkv_bias", "o_bias", "gate_up_bias", "down_bias")},
    "qk norm": {"qk_norm": True, "roles": ("q_norm", "k_norm")},
    "window": {"sliding_window": (0, 5)},
    "tied": {"without": ("head",)},
    "layer norm": {"norm": "layer", "roles": ("attn_norm_bias", "mlp_norm_bias", "final_norm_bias")},
    "norm offset": {"norm_offset": 1.0},
    "bare norms": {"norm_has_weight": False, "without": ("attn_norm", "mlp_norm", "final_norm")},
    "norms after": {"norm_after_residual": True},
    "post norms": {"roles": ("attn_post_norm", "mlp_post_norm")},
    "parallel": {"parallel_block": True},
    "parallel, one norm": {"parallel_block": True, "without": ("mlp_norm",)},
    "caps and scales": {"attention_cap": 2.0, "final_cap": 3.0, "embed_scale": 4.0, "residual_scale": 0.5,
                        "logit_scale": 0.25, "clip_qkv": 0.5},
    "interleaved part of a head": {"rope": RopeSpec("default", 1e4, 8, 512, {}), "rope_interleaved": True},
    "two ropes": {"local_rope": RopeSpec("linear", 100.0, 12, 512, {"factor": 2.0}), "layer_rope": (1, -1)},
    "heads of whole panels": {"head_dim": 32, "attention_scale": 32**-0.5, "qk_norm": True,
                              "rope": RopeSpec("default", 1e4, 32, 512, {}), "roles": ("qkv_bias", "q_norm", "k_norm")},
    "relu squared": {"activation": "relu2", "roles": ("up",), "without": ("gate_up",)},
    "gelu": {"activation": "gelu"},
    "gelu tanh": {"activation": "gelu_tanh"},
    "experts": {"experts": ExpertSpec(4, 2, 16, True, 24), "without": ("gate_up", "down"), "roles": (
        "router", "experts_gate_up", "experts_down", "shared_gate_up", "shared_down", "shared_gate")},
}


def spec_with(trait: dict) -> DecoderSpec:
    roles = {*LAYER_ROLES, "embed", "final_norm", "head", *trait.get("roles", ())} - set(trait.get("without", ()))
    outer = ("embed", "final_norm", "head", "final_norm_bias")
    base = {
        "model_type": "made up", "vocab_size": 50, "hidden_size": 40, "intermediate_size": 56, "num_layers": 2,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "norm_eps": 1e-5, "activation": "silu", "rope": ROPE,
        "attention_scale": 12**-0.5, "context_length": 512, "sliding_window": (0, 0), "qk_norm": False,
        "tensors": {role: role if role in outer else f"layers.{{i}}.{role}" for role in roles},
    }
    return DecoderSpec(**base | {key: value for key, value in trait.items() if key not in ("roles", "without")})


def weights_of(spec: DecoderSpec) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(11)
    weights = {}
    for role, shape in sorted(role_shapes(spec).items()):
        if role in spec.tensors:
            for layer in range(spec.num_layers):
                values = rng.standard_normal(shape) * (0.3 if len(shape) > 1 or "bias" in role else 1.0)
                weights[spec.names(role, layer)[0]] = values.astype(np.float32)
    return weights


@pytest.mark.parametrize("trait", TRAITS)
def test_the_native_core_computes_what_its_twin_computes(trait):
    spec = spec_with(TRAITS[trait])
    weights = weights_of(spec)
    tokens = [int(token) for token in np.random.RandomState(3).randint(0, spec.vocab_size, 20)]
    found = Model.from_arrays(spec, weights, threads=1).logits(tokens, activations="float32")
    expected = forward(spec, weights, tokens)
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("trait", [*TRAITS, "encoder"])
def test_threads_do_not_matter_to_any_trait(trait, activations):
    """260 tokens: on two and three threads each multiplies columns of its own, in two blocks; an encoder's in one."""
    spec = spec_with(TRAITS.get(trait, {"causal": False}))
    weights = weights_of(spec)
    tokens = [int(token) for token in np.random.RandomState(3).randint(0, spec.vocab_size, 260)]
    results = []
    for threads in (1, 2, 3):
        model = Model.from_arrays(spec, weights, threads=threads)
        compute = model.logits if spec.causal else model.hidden_states
        results.append(compute(tokens, activations=activations))
    assert np.isfinite(results[0]).all() and results[0].std() > 0
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("trait", TRAITS)
def test_the_last_layer_may_leave_out_what_nobody_asks_for(trait, activations):
    """Three sequences in one step, of which one wants every token's logits, one its last token's and one none."""
    spec = spec_with(TRAITS[trait])
    tokens = [int(token) for token in np.random.RandomState(3).randint(0, spec.vocab_size, 200)]
    for threads in (1, 3):
        model = Model.from_arrays(spec, weights_of(spec), threads=threads)
        want = model.logits(tokens, activations=activations)
        pool = model.new_pool(3 * model.pages_for(len(tokens)), activations)
        sequences = [model.new_sequence(pool, SamplerConfig(temperature=0.0)) for _ in range(3)]
        for sequence in sequences:
            sequence.add_pages(pool.allocate(model.pages_for(len(tokens))))
        at = 0
        for count, outputs in (
            (1, ("none", "none", "none")), (1, ("none", "last", "logits")), (130, ("none", "last", "logits")),
            (40, ("sample", "none", "none")), (20, ("none", "none", "none")), (8, ("last", "last", "sample")),
        ):
            found = model.step(pool, [StepInput(sequence, tokens[at:at + count], output)
                                      for sequence, output in zip(sequences, outputs)])
            at += count
            for output, result in zip(outputs, found):
                if output == "logits":
                    assert result.logits.tobytes() == want[at - count:at].tobytes()
                elif output == "last":
                    assert result.logits.tobytes() == want[at - 1:at].tobytes()
                elif output == "sample":
                    assert result.token_id == int(want[at - 1].argmax())
        assert at == len(tokens)

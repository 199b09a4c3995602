"""The native step: the same bits alone or in a batch, in any chunks, on any threads and instruction set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kumquant import _native
from kumquant.convert import convert
from kumquant.engine import Engine, SamplingParams
from kumquant.errors import CapacityError, RequestError, TensorCacheError
from kumquant.models import DecoderSpec, RopeSpec, TensorCache
from kumquant.runtime import KV_DTYPES, Model, SamplerConfig, StepInput, reference
from kumquant.runtime.loader import role_shapes

ISAS = _native.isa_list()
LAYER_ROLES = (
    "attn_norm", "mlp_norm", "q_norm", "k_norm", "qkv", "o", "gate_up", "down",
    "qkv_bias", "o_bias", "gate_up_bias", "down_bias",
)


def make_spec(**changes) -> DecoderSpec:
    base: dict = {
        "model_type": "llama", "vocab_size": 150, "hidden_size": 72, "intermediate_size": 116,
        "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 12, "norm_eps": 1e-5,
        "activation": "silu",
        "rope": RopeSpec("default", 10000.0, 12, 512, {}), "attention_scale": 12**-0.5, "context_length": 512,
        "sliding_window": (0, 40), "qk_norm": True,
        "tensors": {
            "embed": "embed.weight", "final_norm": "norm.weight", "head": "head.weight",
            **{role: "layers.{i}." + role for role in LAYER_ROLES},
        },
    }
    return DecoderSpec(**(base | changes))


def make_tensors(spec: DecoderSpec, quantized: bool, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for role, shape in role_shapes(spec).items():
        if role not in spec.tensors:
            continue
        for layer in range(spec.num_layers if "{i}" in spec.tensors[role] else 1):
            name = spec.tensors[role].format(i=layer)
            if len(shape) == 2 and quantized:
                groups = -(-shape[1] // 32)
                stem = name.removesuffix(".weight")
                tensors[stem + ".q_weight"] = rng.integers(0, 2**32, (shape[0], groups * 4), dtype=np.uint32)
                tensors[stem + ".q_scale"] = rng.uniform(0.01, 0.03, (shape[0], groups)).astype(np.float16)
            else:
                scale = 0.2 if len(shape) == 2 else 1.0
                tensors[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return tensors


SPEC = make_spec()
QUANTIZED = make_tensors(SPEC, quantized=True)
PLAIN = make_tensors(SPEC, quantized=False)
# Heads of whole panels: a thread goes on from a kv head's product to its attention, and quantizes what that gives.
WHOLE = make_spec(head_dim=32, rope=RopeSpec("default", 10000.0, 32, 512, {}), tensors=SPEC.tensors | {
    role: f"layers.{{i}}.{role}" for role in ("qkv_bias", "o_bias")})
# As many heads for each of two or three threads.
MANY = make_spec(head_dim=16, num_kv_heads=6, rope=RopeSpec("default", 10000.0, 16, 512, {}))
MODELS = {"quantized": (SPEC, QUANTIZED), "plain": (SPEC, PLAIN),
          "whole panels": (WHOLE, make_tensors(WHOLE, quantized=True)),
          "many heads": (MANY, make_tensors(MANY, quantized=True))}
TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, SPEC.vocab_size, 300)]
# Over the end of attention's first chunk of 256. Few: with more threads than processors a barrier takes milliseconds.
ONE_BY_ONE = [250] + [1] * 10 + [40]


def run_in_chunks(model: Model, tokens: list[int], chunks: list[int], activations: str,
                  kv_dtype: str = "auto") -> np.ndarray:
    pool = model.new_pool(model.pages_for(len(tokens)) + 3, activations, kv_dtype)
    pool.allocate(2)  # so that page numbers are not 0, 1, 2, …
    sequence = model.new_sequence(pool)
    rows, at = [], 0
    for count in chunks:
        sequence.add_pages(pool.allocate(model.pages_for(at + count) - sequence.num_pages))
        rows.append(model.step(pool, [StepInput(sequence, tokens[at:at + count], "logits")])[0].logits)
        at += count
    assert at == len(tokens) and sequence.length == at
    return np.concatenate(rows)


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("model", MODELS)
def test_chunks_threads_and_instruction_sets_do_not_matter(model, activations):
    spec, tensors = MODELS[model]
    want = None
    for isa in ISAS:
        for threads in (1, 2, 3):
            model = Model.from_arrays(spec, tensors, threads=threads, isa=isa)
            assert (model.isa, model.threads) == (isa, threads)
            single = [1] * 300 if threads == 1 and isa != "portable" else ONE_BY_ONE
            for chunks in ([300], [1, 99, 7, 193], [64, 64, 64, 64, 44], single):
                got = run_in_chunks(model, TOKENS, list(chunks), activations)
                want = got if want is None else want
                assert got.tobytes() == want.tobytes(), (isa, threads, chunks)
    assert np.isfinite(want).all() and want.std() > 0.1


@pytest.mark.parametrize("model", MODELS)
def test_chunks_threads_and_instruction_sets_do_not_matter_to_an_int8_cache(model):
    spec, tensors = MODELS[model]
    want = None
    for isa in ISAS:
        for threads in (1, 2, 3):
            model = Model.from_arrays(spec, tensors, threads=threads, isa=isa)
            for chunks in ([300], [1, 99, 7, 193], ONE_BY_ONE):
                got = run_in_chunks(model, TOKENS, chunks, "int8", "int8")
                want = got if want is None else want
                assert got.tobytes() == want.tobytes(), (isa, threads, chunks)


@pytest.mark.parametrize("changes", [
    {}, {"sliding_window": (16, 0), "attention_cap": 20.0}, {"num_kv_heads": 1}, {"num_kv_heads": 6}, {"causal": False},
], ids=["grouped", "capped", "one head", "all heads", "encoder"])
def test_an_int8_cache_computes_what_its_twin_does(changes):
    spec = make_spec(**changes)
    tensors = make_tensors(spec, quantized=False)
    model = Model.from_arrays(spec, tensors, threads=2)
    compute = model.logits if spec.causal else model.hidden_states
    exact, rounded = (compute(TOKENS[:80], "float32", kv_dtype) for kv_dtype in ("float32", "int8"))
    want = reference.forward(spec, tensors, TOKENS[:80], "int8")
    loss = np.abs(rounded - exact).mean()
    assert loss > 0
    assert np.abs(rounded - want).mean() < 0.2 * loss  # now and then a code falls to the other side of a tie
    assert np.abs(rounded - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_threads_that_share_a_long_context_change_nothing(kv_dtype):
    """Of two key/value heads, on three or five threads; layer 1 has a window of 40."""
    tokens, results, grown_before = TOKENS * 4, [], _native.kernels.late_growths()
    for threads in (1, 3, 5):
        model = Model.from_arrays(SPEC, QUANTIZED, threads=threads)
        results.append(run_in_chunks(model, tokens, [1100, 1, 1, 98], "int8", kv_dtype)[1050:])
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert _native.kernels.late_growths() == grown_before


def test_an_int8_cache_takes_about_half_the_memory():
    model = Model.from_arrays(make_spec(head_dim=64, hidden_size=384, num_heads=6), make_tensors(
        make_spec(head_dim=64, hidden_size=384, num_heads=6), quantized=True), threads=1)
    sizes = {kv_dtype: model.new_pool(1, "int8", kv_dtype).page_bytes for kv_dtype in KV_DTYPES}
    assert sizes["auto"] == sizes["float16"] == sizes["float32"] // 2
    assert sizes["int8"] == sizes["float16"] * 33 // 64  # a scale of two bytes for 64 codes
    assert model.new_pool(1, "float32").kv_dtype == "float32"
    with pytest.raises(RequestError, match="auto, float32, float16, int8"):
        model.new_pool(1, "int8", "q8_0")  # type: ignore[arg-type]


def test_plain_layers_compute_the_same_in_either_setting():
    model = Model.from_arrays(SPEC, PLAIN, threads=2)
    assert model.logits(TOKENS[:70], "int8").tobytes() == model.logits(TOKENS[:70], "float32").tobytes()


def test_quantized_layers_do_not():
    model = Model.from_arrays(SPEC, QUANTIZED, threads=2)
    exact, rounded = model.logits(TOKENS[:70], "float32"), model.logits(TOKENS[:70], "int8")
    assert exact.tobytes() != rounded.tobytes()
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_batch_gives_every_sequence_what_it_gets_alone(isa, name, kv_dtype):
    model = Model.from_arrays(*MODELS[name], threads=2, isa=isa)
    prompts = [TOKENS[i:i + n] for i, n in enumerate([1, 5, 64, 65, 130, 17])]
    alone = [run_in_chunks(model, p, [len(p)], "int8", kv_dtype) for p in prompts]
    pool = model.new_pool(16, "int8", kv_dtype)
    sequences = [model.new_sequence(pool) for _ in prompts]
    done = [0] * len(prompts)
    # Each step gives every unfinished sequence another piece, so that prefill and decode mix.
    for piece in (1, 1, 3, 59, 1, 65):
        items = []
        for i, p in enumerate(prompts):
            part = p[done[i]:done[i] + piece]
            if part:
                needed = model.pages_for(done[i] + len(part)) - sequences[i].num_pages
                sequences[i].add_pages(pool.allocate(needed))
                items.append((i, part))
        outputs = model.step(pool, [StepInput(sequences[i], part, "logits") for i, part in items])
        for (i, part), output in zip(items, outputs, strict=True):
            assert output.logits.tobytes() == alone[i][done[i]:done[i] + len(part)].tobytes()
            done[i] += len(part)
    assert done == [len(p) for p in prompts]


def prompted(model, pool, prompts, end_ids=(), **config):
    """Inputs that go on after ``prompts``: sequences whose first token is sampled."""
    inputs = []
    for seed, prompt in enumerate(prompts):
        sequence = model.new_sequence(pool, SamplerConfig(seed=seed, **config), prompt, end_ids)
        sequence.add_pages(pool.allocate(3))
        (first,) = model.step(pool, [StepInput(sequence, prompt, "sample")])
        inputs.append(StepInput(sequence, [first.token_id], "sample"))
    return inputs


@pytest.mark.parametrize("config", [{}, {"temperature": 1.0, "logprobs": 2, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("name", MODELS)
def test_steps_in_one_call_are_steps(name, config):
    model = Model.from_arrays(*MODELS[name], threads=2)
    prompts, wanted = [TOKENS[:60], TOKENS[5:6], TOKENS[70:97]], []
    pool = model.new_pool(18)
    inputs = prompted(model, pool, prompts, **config)
    for _ in range(12):
        outputs = model.step(pool, inputs)
        wanted.append(outputs)
        inputs = [StepInput(fed.sequence, [output.token_id], "sample") for fed, output in zip(inputs, outputs)]
    inputs = prompted(model, pool, prompts, **config)
    for first, count in ((0, 5), (5, 1), (6, 6)):
        outputs = model.decode(pool, inputs, count)
        assert outputs == [list(its) for its in zip(*wanted[first:first + count])]
        inputs = [StepInput(fed.sequence, [its[-1].token_id], "sample") for fed, its in zip(inputs, outputs)]
    assert [fed.sequence.length for fed in inputs] == [len(prompt) + 12 for prompt in prompts]


def test_steps_in_one_call_end_with_the_first_end_id():
    model = Model.from_arrays(*MODELS["quantized"], threads=2)
    prompts = [TOKENS[:20], TOKENS[30:33]]
    pool = model.new_pool(12)
    first, second = model.decode(pool, prompted(model, pool, prompts, temperature=1.0), 10)
    at = next(i for i in range(2, 10) if second[i] not in second[:i] and second[i] not in first[:i])
    ends = [second[at].token_id]
    assert model.decode(pool, prompted(model, pool, prompts, ends, temperature=1.0), 10) == [first[:at + 1],
                                                                                            second[:at + 1]]


def test_a_rope_that_depends_on_the_length_is_set_before_every_step():
    spec = make_spec(rope=RopeSpec("dynamic", 10000.0, 12, 16, {"factor": 2.0}))
    model = Model.from_arrays(spec, QUANTIZED, threads=1)
    pool = model.new_pool(6)
    inputs = prompted(model, pool, [TOKENS[:60]])
    wanted = model.step(pool, inputs)
    assert model.decode(pool, prompted(model, pool, [TOKENS[:60]]), 5) == [wanted]


def test_steps_in_one_call_that_go_wrong():
    model = Model.from_arrays(*MODELS["quantized"], threads=2)
    pool = model.new_pool(2)
    sequence = model.new_sequence(pool, SamplerConfig(), TOKENS[:60])
    sequence.add_pages(pool.allocate(1))
    model.step(pool, [StepInput(sequence, TOKENS[:60], "sample")])
    with pytest.raises(CapacityError, match="lacks pages"):
        model.decode(pool, [StepInput(sequence, [1], "sample")], 8)
    assert sequence.length == 64
    sequence.rewind(3)
    with pytest.raises(RequestError, match="vocabulary"):
        model.decode(pool, [StepInput(sequence, [model.vocab_size], "sample")], 8)
    with pytest.raises(RequestError, match="at least one step"):
        model.decode(pool, [StepInput(sequence, [1], "sample")], 0)
    without = model.new_sequence(pool)
    without.add_pages(pool.allocate(1))
    with pytest.raises(RequestError, match="sampler"):
        model.decode(pool, [StepInput(without, [1], "sample")], 8)
    assert len(model.decode(pool, [StepInput(sequence, [1], "sample")], 8)[0]) == 8


@pytest.mark.parametrize("name", MODELS)
def test_a_last_layer_of_few_tokens_after_layers_of_many(name):
    """Each thread multiplies columns of its own until then."""
    model, grown_before = Model.from_arrays(*MODELS[name], threads=2), _native.kernels.late_growths()
    pool = model.new_pool(2 * model.pages_for(100), "int8")
    sequences = [model.new_sequence(pool) for _ in range(2)]
    for sequence in sequences:
        sequence.add_pages(pool.allocate(model.pages_for(100)))
    prompts = TOKENS[:90], TOKENS[90:190]
    found = model.step(pool, [StepInput(sequence, prompt, "last") for sequence, prompt in zip(sequences, prompts)])
    for output, tokens in zip(found, prompts, strict=True):
        assert output.logits.tobytes() == model.logits(tokens)[-1:].tobytes()
    assert _native.kernels.late_growths() == grown_before


def test_reused_pages_leave_no_trace():
    model = Model.from_arrays(SPEC, QUANTIZED, threads=2)
    pool = model.new_pool(4, "int8")
    results = []
    for tokens in (TOKENS[:200], TOKENS[100:230], TOKENS[:200]):
        sequence = model.new_sequence(pool)
        sequence.add_pages(pool.allocate(model.pages_for(len(tokens))))
        results.append(model.step(pool, [StepInput(sequence, tokens, "last")])[0].logits)
        sequence.close()
        assert pool.num_free == 4
    assert results[0].tobytes() == results[2].tobytes()


def test_rewinding_a_sequence_forgets_the_tail():
    model = Model.from_arrays(SPEC, QUANTIZED, threads=1)
    pool = model.new_pool(4, "int8")
    sequence = model.new_sequence(pool)
    sequence.add_pages(pool.allocate(3))
    model.step(pool, [StepInput(sequence, TOKENS[:150], "none")])
    sequence.rewind(60)
    assert (sequence.length, sequence.num_pages, pool.num_free) == (60, 1, 3)
    sequence.add_pages(pool.allocate(1))
    got = model.step(pool, [StepInput(sequence, TOKENS[60:70], "last")])[0].logits
    assert got.tobytes() == model.logits(TOKENS[:70])[-1:].tobytes()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("threads", [2, 3, 6])
def test_threads_on_one_processor_give_way_to_each_other(threads):
    """As the system places them while others are busy; the pool had counted on a processor for each."""
    wanted = run_in_chunks(Model.from_arrays(SPEC, QUANTIZED, threads=1), TOKENS[:20], [8] + [1] * 12, "int8")
    model = Model.from_arrays(SPEC, QUANTIZED, threads=threads)
    usable = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    try:
        for task in tasks:
            os.sched_setaffinity(task, {min(usable)})
        found = run_in_chunks(model, TOKENS[:20], [8] + [1] * 12, "int8")
    finally:
        for task in tasks:
            os.sched_setaffinity(task, usable)
    assert found.tobytes() == wanted.tobytes()


def test_end_ids_that_no_model_has():
    engine = Engine(Model.from_arrays(SPEC, PLAIN, threads=1), num_pages=4, end_ids=frozenset({2**40, -1, 3}))
    request = engine.add([1, 2], SamplingParams(max_tokens=3, seed=1))
    while not request.is_finished:
        engine.step()
    assert 1 <= len(request.result().token_ids) <= 3


def test_two_models_with_different_threads_in_one_process():
    one, three = (Model.from_arrays(SPEC, QUANTIZED, threads=n) for n in (1, 3))
    for _ in range(3):
        assert one.logits(TOKENS[:40]).tobytes() == three.logits(TOKENS[:40]).tobytes()


def test_impossible_steps_are_refused():
    model = Model.from_arrays(SPEC, QUANTIZED, threads=1)
    pool = model.new_pool(1)
    sequence = model.new_sequence(pool)
    with pytest.raises(CapacityError, match="lacks pages"):
        model.step(pool, [StepInput(sequence, [1], "last")])
    sequence.add_pages(pool.allocate(1))
    with pytest.raises(CapacityError, match="KV cache is full"):
        pool.allocate(1)
    for bad in (-1, SPEC.vocab_size):
        with pytest.raises(RequestError, match="outside the vocabulary"):
            model.step(pool, [StepInput(sequence, [bad], "last")])
    with pytest.raises(RequestError, match="at least one token"):
        model.step(pool, [StepInput(sequence, [], "last")])
    with pytest.raises(CapacityError, match="lacks pages"):  # whatever else is wrong
        model.step(pool, [StepInput(sequence, [-1], "last"), StepInput(model.new_sequence(pool), [1], "last")])
    with pytest.raises(RequestError, match="twice"):
        model.step(pool, [StepInput(sequence, [1], "last")] * 2)
    assert sequence.length == 0
    with pytest.raises(RequestError, match="usable"):
        Model.from_arrays(SPEC, QUANTIZED, isa="sse9")
    with pytest.raises(RequestError, match="expected 1 to"):
        Model.from_arrays(SPEC, QUANTIZED, threads=0)


# ---------------------------------------------------------------- sampling


def draw(count: int, **config) -> list[int]:
    """``count`` first tokens after one prompt, with seeds 0, 1, …"""
    model = Model.from_arrays(SPEC, PLAIN, threads=1)
    pool = model.new_pool(1)
    tokens = []
    for seed in range(count):
        sequence = model.new_sequence(pool, SamplerConfig(seed=seed, **config), TOKENS[:4])
        sequence.add_pages(pool.allocate(1))
        tokens.append(model.step(pool, [StepInput(sequence, TOKENS[:4], "sample")])[0].token_id)
        sequence.close()
    return tokens


def probabilities(temperature: float = 1.0) -> np.ndarray:
    logits = Model.from_arrays(SPEC, PLAIN, threads=1).logits(TOKENS[:4])[-1].astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_greedy_takes_the_largest_logit():
    assert set(draw(3)) == {int(probabilities().argmax())}


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_look_for_the_largest_logit_together(threads):
    """Every row of the head stands there four times: the first of equals wins, wherever the threads' parts begin."""
    spec = make_spec(vocab_size=400)
    tensors = make_tensors(spec, quantized=False)
    tensors["head.weight"] = np.tile(tensors["head.weight"][:100], (4, 1))
    tensors["head.weight"][30] = np.nan  # is not larger than anything
    model = Model.from_arrays(spec, tensors, threads=threads)
    logits = model.logits(TOKENS[:9])[-1]
    largest = int(np.nanargmax(logits))
    assert largest < 100 and (logits == logits[largest]).sum() == 4
    for config, want in (({}, largest), ({"logprobs": 2}, largest), ({"banned": [largest]}, largest + 100),
                         ({"logit_bias": {395: 1e4}}, 395), ({"temperature": 1e-4, "top_k": 1}, largest)):
        pool = model.new_pool(1)
        sequence = model.new_sequence(pool, SamplerConfig(**{"temperature": 0.0} | config), TOKENS[:9])
        sequence.add_pages(pool.allocate(1))
        assert model.step(pool, [StepInput(sequence, TOKENS[:9], "sample")])[0].token_id == want


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_draws_follow_the_distribution(temperature):
    n = 3000
    counts = np.bincount(draw(n, temperature=temperature), minlength=SPEC.vocab_size)
    p = probabilities(temperature)
    common = p * n >= 20
    chi2 = ((counts - n * p)[common] ** 2 / (n * p)[common]).sum()
    assert common.sum() > 5 and chi2 < 2.0 * common.sum() + 15


def test_seeds_decide_and_nothing_else():
    assert draw(20, temperature=1.0) == draw(20, temperature=1.0)
    assert len(set(draw(50, temperature=3.0))) > 10


def test_top_k_top_p_and_min_p_cut_where_defined():
    p = probabilities()
    order = np.argsort(-p, kind="stable")
    assert set(draw(400, temperature=1.0, top_k=3)) == set(order[:3].tolist())
    nucleus = order[: int(np.searchsorted(p[order].cumsum(), 0.6) + 1)]
    assert set(draw(1500, temperature=1.0, top_p=0.6)) <= set(nucleus.tolist())
    assert len(set(draw(1500, temperature=1.0, top_p=0.6))) > len(nucleus) // 2
    above = set(np.flatnonzero(p >= 0.5 * p.max()).tolist())
    assert set(draw(600, temperature=1.0, min_p=0.5)) == above
    assert set(draw(20, temperature=1.0, top_p=1e-6)) == {int(order[0])}


@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e-45])
@pytest.mark.parametrize("config", [{}, {"min_p": 0.5}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}])
def test_the_lowest_temperatures_take_the_largest_logit(temperature, config):
    assert set(draw(3, temperature=temperature, **config)) == {int(probabilities().argmax())}


def test_penalties_bias_and_bans():
    logits = Model.from_arrays(SPEC, PLAIN, threads=1).logits(TOKENS[:4])[-1]
    best = int(logits.argmax())
    assert draw(1, banned=[best]) == [int(np.argsort(-logits)[1])]
    assert draw(1, logit_bias={7: 1e4}) == [7]
    punished = logits.copy()
    for token in set(TOKENS[:4]):
        punished[token] = punished[token] / 1.7 if punished[token] > 0 else punished[token] * np.float32(1.7)
    assert draw(1, repetition_penalty=1.7) == [int(punished.argmax())]


def test_frequency_and_presence_penalties_count_the_output_only():
    model = Model.from_arrays(SPEC, PLAIN, threads=1)
    pool = model.new_pool(1)
    plain = model.new_sequence(pool, SamplerConfig(), TOKENS[:4])
    plain.add_pages(pool.allocate(1))
    first = model.step(pool, [StepInput(plain, TOKENS[:4], "sample")])[0].token_id
    plain.close()
    for config in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        sequence = model.new_sequence(pool, SamplerConfig(**config), TOKENS[:4])
        sequence.add_pages(pool.allocate(1))
        seen = [model.step(pool, [StepInput(sequence, TOKENS[:4], "sample")])[0].token_id]
        for _ in range(20):
            seen.append(model.step(pool, [StepInput(sequence, seen[-1:], "sample")])[0].token_id)
        assert seen[0] == first and len(set(seen)) == len(seen)
        sequence.close()


def test_logprobs_are_of_the_unmodified_distribution():
    model = Model.from_arrays(SPEC, PLAIN, threads=1)
    pool = model.new_pool(1)
    config = SamplerConfig(temperature=2.0, top_k=1, logit_bias={9: 1e4}, logprobs=3)
    sequence = model.new_sequence(pool, config, TOKENS[:4])
    sequence.add_pages(pool.allocate(1))
    output = model.step(pool, [StepInput(sequence, TOKENS[:4], "sample")])[0]
    p = probabilities()
    assert output.token_id == 9 and abs(output.logprob - np.log(p[9])) < 1e-5
    order = np.argsort(-p, kind="stable")[:3]
    assert [token for token, _ in output.top] == order.tolist()
    np.testing.assert_allclose([value for _, value in output.top], np.log(p[order]), atol=1e-5)


def test_a_shard_cut_under_a_loaded_model_is_an_error_not_a_crash(tmp_path):
    case = Path(__file__).parents[2].parent / "shared/conformance/cases/llama_f16_aligned"
    if not case.exists():
        pytest.skip("skipped: ../shared/conformance is not there")
    convert(case / "hf", tmp_path / "cache", quantization="q4f16_1")
    model = Model(TensorCache.open(tmp_path / "cache"), threads=1)
    want = model.logits([1, 2, 5])
    for shard in (tmp_path / "cache").glob("*.bin"):
        os.truncate(shard, 0)
    with pytest.raises(TensorCacheError, match="can no longer be read"):
        model.logits([1, 2, 200])
    assert want.shape == (3, 256)

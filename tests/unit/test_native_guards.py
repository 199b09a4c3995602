"""What the native core refuses, so that a wrong size never becomes a wrong address."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from test_native_runtime import PLAIN, QUANTIZED, SPEC, TOKENS, make_spec, make_tensors

from kumquant import _native
from kumquant.errors import RequestError
from kumquant.runtime import Model, StepInput
from kumquant.runtime.model import native_spec

SMALL = make_spec(num_layers=1, sliding_window=(0,))


def native_model(**changes) -> _native.Model:
    return _native.Model(native_spec(SPEC) | changes, 1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"num_heads": 1 << 16, "head_dim": 1 << 16}, "wider"),
        ({"num_kv_heads": 1 << 20, "head_dim": 1 << 11}, "wider"),
        ({"intermediate_size": 1 << 30}, "wider"),
        ({"layer_rope": [0, 2**31 - 1]}, "layer_rope"),
        ({"layer_rope": [0, -2]}, "layer_rope"),
        ({"sliding_window": [0]}, "one entry a layer"),
    ],
)
def test_specs_whose_sizes_overflow(changes, what):
    with pytest.raises(ValueError, match=what):
        native_model(**changes)


@pytest.mark.parametrize("changes", [{"num_heads": 7, "num_kv_heads": 4}, {"num_heads": 2, "num_kv_heads": 4}])
def test_a_bias_of_heads_that_do_not_divide(changes):
    heads = changes["num_heads"] + 2 * changes["num_kv_heads"]
    model = native_model(head_dim=16, **changes)
    model.set_vector("qkv_bias", 0, np.ones(heads * 16, np.float32))
    with pytest.raises(ValueError, match="do not share"):
        model.check()


@pytest.mark.parametrize("role", ["embed", "positions", "token_types"])
def test_a_table_of_another_width(role):
    model = Model.from_arrays(SPEC, PLAIN, threads=1).native
    model.set_embedding_plain(role, np.zeros(3 * 80 * 4, np.uint8), "float32", 3, 80)
    with pytest.raises(ValueError, match="3 rows of 80 values, expected rows of 72"):
        model.check()


def test_a_table_without_rows():
    model = Model.from_arrays(SPEC, PLAIN, threads=1).native
    model.set_embedding_plain("token_types", np.zeros(0, np.uint8), "float32", 0, 72)
    with pytest.raises(ValueError, match="0 rows"):
        model.check()


@pytest.mark.parametrize(("bits", "group", "words"), [(3, 32, 3), (4, 12, 1), (8, 10, 2)])
def test_groups_that_do_not_fill_their_words(bits, group, words):
    model = native_model()
    with pytest.raises(ValueError, match="layout"):
        model.set_embedding_quantized(
            "embed", np.zeros(words * 4, np.uint8), np.zeros(2, np.uint8), "float16", 1, group, bits, group
        )


def test_norms_that_must_be_there():
    for missing in ("attn_norm", "mlp_norm"):
        tensors = {role: name for role, name in SPEC.tensors.items() if role != missing}
        with pytest.raises(ValueError, match=f"layer 0 {missing} is missing"):
            Model.from_arrays(make_spec(norm_after_residual=True, tensors=tensors), PLAIN, threads=1)


def test_rope_frequencies_of_another_length():
    model = Model.from_arrays(SPEC, PLAIN, threads=1)
    pool = model.new_pool(1)
    sequence = model.new_sequence(pool)
    sequence.add_pages(pool.allocate(1))
    sequence.native.set_rope(np.ones(2, np.float32), 1.0)
    with pytest.raises(ValueError, match="rope frequencies"):
        model.native.step(pool.native, [sequence.native], [[1]], [2], True)
    with pytest.raises((TypeError, ValueError)):
        model.native.step(pool.native, [None], [[1]], [2], True)


def test_a_pool_of_another_model():
    model, other = (Model.from_arrays(spec, tensors, threads=1)
                    for spec, tensors in ((SPEC, PLAIN), (SMALL, make_tensors(SMALL, False))))
    pool = other.new_pool(1)
    sequence = model.new_sequence(pool)
    sequence.add_pages(pool.allocate(1))
    with pytest.raises(RequestError, match="another model's"):
        model.step(pool, [StepInput(sequence, [1], "last")])
    with pytest.raises(ValueError, match="float32, float16 or int8"):
        _native.PagePool(model.native, 1, "bfloat16")


@pytest.mark.parametrize("group", [64, 128])
def test_groups_of_several_panel_groups(group):
    """One scale for 64 or 128 inputs gives what the same scale for each 32 of them gives; 72 inputs leave a tail."""
    rng = np.random.default_rng(11)
    rows, inputs = 40, 72
    fine, coarse = -(-inputs // 32), -(-inputs // group)
    words = rng.integers(0, 2**32, (rows, coarse * group // 8), dtype=np.uint32)
    scales = rng.uniform(0.01, 0.03, (rows, coarse)).astype(np.float16)
    spread = np.ascontiguousarray(np.repeat(scales, group // 32, 1)[:, :fine])
    x = rng.standard_normal((3, inputs)).astype(np.float32)

    def product(codes: np.ndarray, its_scales: np.ndarray, its_group: int) -> np.ndarray:
        as_bytes = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (codes, its_scales)]
        return _native.kernels.matmul("portable", *as_bytes, "float16", rows, x, group=its_group)

    want = product(words[:, : fine * 4], spread, 32)
    assert np.abs(want).max() > 0.1
    assert product(words, scales, group).tobytes() == want.tobytes()


def test_threads_that_call_one_model_take_turns():
    model = Model.from_arrays(SPEC, QUANTIZED, threads=2)
    want = model.logits(TOKENS).tobytes()
    got: list[bytes] = []

    def ask() -> None:
        got.extend(model.logits(TOKENS).tobytes() for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == [want] * 12
    assert not any(thread.is_alive() for thread in threads)


def test_a_parallel_block_with_a_post_norm_of_its_mlp_is_refused():
    tensors = dict(SPEC.tensors) | {"mlp_post_norm": "layers.{i}.mlp_post_norm"}
    spec = make_spec(parallel_block=True, tensors=tensors)
    with pytest.raises(ValueError, match="layer 0 mlp_post_norm"):
        Model.from_arrays(spec, make_tensors(spec, False), threads=1)


K, ISA = _native.kernels, _native.isa_list()[0]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("call", [
    lambda: K.rms_norm(ISA, zeros(32), zeros(16), 1e-5),
    lambda: K.layer_norm(ISA, zeros(32), zeros(32), zeros(16), 1e-5),
    lambda: K.rope(ISA, zeros(32), zeros(16), zeros(8)),
    lambda: K.argmax(ISA, zeros(0)),
    lambda: K.quantize(ISA, zeros(32), 0),
    lambda: K.quantize(ISA, zeros(128), 64),
    lambda: K.attend(ISA, zeros(1, 32), zeros(2, 32), zeros(1, 32), [0], [1], "float32"),
    lambda: K.attend(ISA, zeros(1, 32), zeros(2, 32), zeros(2, 32), [0], [2], "float32"),
    lambda: K.attend(ISA, zeros(1, 32), zeros(2, 32), zeros(2, 32), [], [1], "float32"),
    lambda: K.matmul(ISA, np.zeros(32, np.uint8), None, "float16", 1, zeros(1, 16), "float32", bias=zeros(0)),
    lambda: K.matmul(ISA, np.zeros(32, np.uint8), None, "float16", 1, zeros(0, 16), "float32"),
], ids=["rms_norm", "layer_norm", "rope", "argmax", "quantize nothing", "quantize groups of 64",
        "attend v", "attend last", "attend first", "matmul bias", "matmul columns"])
def test_kernels_refuse_sizes_that_do_not_fit(call):
    with pytest.raises(ValueError):
        call()

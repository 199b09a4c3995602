"""Every kernel against a plain numpy twin, and bit for bit across the instruction sets this machine has.

The numpy twins are written from the definitions in csrc/kernels/*.h. They cannot fuse multiply-adds, so they
are compared with a tolerance of a few float32 roundings; between instruction sets there is none.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from kumquant import _native
from kumquant.runtime.reference import hadamard, int8_rounded

K = _native.kernels
ISAS = _native.isa_list()
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
RNG = np.random.default_rng(7)


def raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def on_every_isa(run):
    """run(isa) on each instruction set; asserts equal bits; returns the result."""
    results = [run(isa) for isa in ISAS]
    for isa, result in zip(ISAS, results, strict=True):
        assert result.tobytes() == results[0].tobytes(), f"{isa} differs from {ISAS[0]}"
    return results[0]


def random_groups(rows: int, inputs: int, dtype: str):
    groups = -(-inputs // 32)
    codes = RNG.integers(0, 16, (rows, groups * 32), dtype=np.uint32)
    words = (codes.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    scales = (RNG.standard_normal((rows, groups)) * 0.05).astype(DTYPES[dtype])
    weight = (codes[:, :inputs].astype(np.float64) - 7) * np.repeat(scales.astype(np.float64), 32, 1)[:, :inputs]
    return words, scales, weight


def int8_twin(x: np.ndarray, group: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Codes (columns, padded) and scales (columns, groups).

    scale = max|x| / 127, code = round half even(x * (127 / max|x|)).
    """
    columns, inputs = x.shape
    groups = -(-inputs // group)
    padded = np.zeros((columns, groups * group), np.float32)
    padded[:, :inputs] = x
    padded = padded.reshape(columns, groups, group)
    top = np.abs(padded).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0)).astype(np.float32)
    codes = np.clip(np.rint(padded * inverse[..., None]), -127, 127).astype(np.int8)
    return codes.reshape(columns, -1), top / np.float32(127)


@pytest.mark.parametrize("inputs", [1, 7, 31, 32, 33, 64, 100, 101, 191, 192, 193, 512, 543, 768])
def test_int8_activations_are_quantized_as_defined(inputs):
    x = (RNG.standard_normal(inputs) * 3).astype(np.float32)
    x[inputs // 2] = 0.0
    codes, scales = int8_twin(x[None])
    groups = scales.shape[1]
    for isa in ISAS:
        got_codes, got_scales, sums = K.quantize(isa, x)
        assert np.array_equal(got_codes[: groups * 32], codes[0])
        assert not got_codes[groups * 32:].any() and not got_scales[groups:].any()
        assert got_scales[:groups].tobytes() == scales[0].tobytes()
        assert np.array_equal(sums[:groups], codes[0].reshape(groups, 32).sum(1, dtype=np.int32))


@pytest.mark.parametrize("inputs", [96, 320])  # few groups one by one, many together
def test_int8_activations_of_zeros_and_extremes(inputs):
    x = np.zeros(inputs, np.float32)
    x[40], x[41], x[42] = 3e38, -3e38, 1e-30
    x[inputs - 8] = np.nan
    x[70] = 1e-45  # the smallest subnormal: 127 / x overflows to infinity
    results = [K.quantize(isa, x) for isa in ISAS]
    for got in results:
        assert not got[0][:32].any() and got[1][0] == 0
        assert got[0][40] == 127 and got[0][41] == -127 and got[0][42] == 0
        for mine, first in zip(got, results[0], strict=True):
            assert mine.tobytes() == first.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 8), (16, 32), (17, 33), (40, 101), (5, 64), (33, 96), (64, 768)])
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 12, 13, 25, 30])
def test_group_quantized_matmul_with_int8_activations(rows, inputs, columns, dtype):
    words, scales, weight = random_groups(rows, inputs, dtype)
    x = RNG.standard_normal((columns, inputs)).astype(np.float32)
    got = on_every_isa(lambda isa: K.matmul(isa, raw(words), raw(scales), dtype, rows, x))
    codes, x_scales = int8_twin(x)
    rounded = codes[:, :inputs].astype(np.float64) * np.repeat(x_scales.astype(np.float64), 32, 1)[:, :inputs]
    want = rounded @ weight.T
    bound = 2e-6 * (np.abs(rounded) @ np.abs(weight).T) + 1e-30
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 8), (17, 33), (40, 101), (64, 768)])
@pytest.mark.parametrize("columns", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("quantized", [True, False])
def test_matmul_with_float32_activations(rows, inputs, columns, dtype, quantized):
    x = RNG.standard_normal((columns, inputs)).astype(np.float32)
    if quantized:
        words, scales, weight = random_groups(rows, inputs, dtype)
        got = on_every_isa(lambda isa: K.matmul(isa, raw(words), raw(scales), dtype, rows, x, "float32"))
    else:
        values = RNG.standard_normal((rows, inputs)).astype(DTYPES[dtype])
        weight = values.astype(np.float64)
        got = on_every_isa(lambda isa: K.matmul(isa, raw(values), None, dtype, rows, x, "float32"))
    want = x.astype(np.float64) @ weight.T
    bound = 2e-6 * (np.abs(x).astype(np.float64) @ np.abs(weight).T)
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_a_column_does_not_depend_on_its_neighbors(activations):
    words, scales, _ = random_groups(40, 101, "float16")
    x = RNG.standard_normal((29, 101)).astype(np.float32)
    for isa in ISAS:
        together = K.matmul(isa, raw(words), raw(scales), "float16", 40, x, activations)
        for c in range(29):
            alone = K.matmul(isa, raw(words), raw(scales), "float16", 40, x[c:c + 1], activations)
            assert alone.tobytes() == together[c].tobytes()


@pytest.mark.parametrize("activations", ["int8", "float32"])
@pytest.mark.parametrize("half", [1, 16, 20, 33])
@pytest.mark.parametrize("columns", [1, 4, 26])
def test_epilogues(half, columns, activations):
    rows, inputs = 2 * half, 70
    words, scales, _ = random_groups(rows, inputs, "bfloat16")
    x = RNG.standard_normal((columns, inputs)).astype(np.float32)
    bias = RNG.standard_normal(rows).astype(np.float32)
    start = RNG.standard_normal((columns, rows)).astype(np.float32)

    def run(epilogue, **more):
        return on_every_isa(lambda isa: K.matmul(
            isa, raw(words), raw(scales), "bfloat16", rows, x, activations, epilogue, **more))

    plain = run("store")
    assert np.array_equal(run("store", bias=bias), plain + bias)
    assert np.array_equal(run("add", start=start), start + plain)
    for more in ({}, {"bias": bias}):
        product = plain + bias if more else plain
        gate, up = product[:, :half].astype(np.float64), product[:, half:]
        want = gate / (1 + np.exp(-gate)) * up
        np.testing.assert_allclose(run("gated", **more), want, rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 72, 768])
def test_rms_norm(n):
    x, weight = RNG.standard_normal(n).astype(np.float32), RNG.standard_normal(n).astype(np.float32)
    got = on_every_isa(lambda isa: K.rms_norm(isa, x, weight, 1e-5))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(got, wide / np.sqrt((wide**2).mean() + 1e-5) * weight, rtol=2e-6)


@pytest.mark.parametrize("half", [1, 6, 16, 17, 32, 64])
def test_rope(half):
    x, angle = RNG.standard_normal(2 * half).astype(np.float32), RNG.standard_normal(half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = on_every_isa(lambda isa: K.rope(isa, x, cos, sin))
    a, b = x[:half], x[half:]
    assert np.array_equal(got, np.concatenate([a * cos - b * sin, b * cos + a * sin]))


def test_exponential():
    x = np.concatenate([np.linspace(-88, 0, 20001), [-np.inf, -1e9, -87.31, -87.29, 0.0, -0.0]]).astype(np.float32)
    got = on_every_isa(lambda isa: K.exp_sum(isa, x, 0.0, 1.0)[1])
    want = np.where(x < np.float32(-87.3), 0.0, np.exp(x.astype(np.float64)))
    np.testing.assert_allclose(got, want, rtol=2.5e-7)
    assert got[-1] == got[-2] == 1.0 and got[20001] == 0.0
    sums = {K.exp_sum(isa, x, 0.0, 1.0)[0] for isa in ISAS}
    assert len(sums) == 1 and abs(sums.pop() / want.sum() - 1) < 1e-6
    large = np.linspace(0, 88.3, 5001).astype(np.float32)
    got = on_every_isa(lambda isa: K.exp_sum(isa, large, 0.0, 1.0)[1])
    np.testing.assert_allclose(got, np.exp(large.astype(np.float64)), rtol=2.5e-7)


@pytest.mark.parametrize("n", [1, 15, 16, 33, 1000])
def test_argmax_takes_the_first_of_equals(n):
    x = RNG.integers(0, 5, n).astype(np.float32)
    for isa in ISAS:
        assert K.argmax(isa, x) == int(x.argmax())


def attention_twin(q, k, v, first, last):
    out = np.empty_like(q, dtype=np.float64)
    for r in range(len(q)):
        seen = slice(first[r], last[r] + 1)
        scores = k[seen].astype(np.float64) @ q[r].astype(np.float64)
        weights = np.exp(scores - scores.max())
        out[r] = weights / weights.sum() @ v[seen].astype(np.float64)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dim", [8, 12, 16, 32, 64, 80, 128])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 12, 13, 16, 17, 33])
def test_attention(dim, rows, dtype):
    tokens = 700
    k, v = (RNG.standard_normal((tokens, dim)).astype(np.float32) for _ in "kv")
    q = (RNG.standard_normal((rows, dim)) / np.sqrt(dim)).astype(np.float32)
    last = [int(t) for t in RNG.integers(0, tokens, rows)]
    last[0] = tokens - 1
    first = [max(0, t - window + 1) for t, window in zip(last, RNG.integers(1, 600, rows), strict=True)]
    first[-1] = 0
    got = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, dtype))
    if dtype == "float16":
        k, v = k.astype(np.float16), v.astype(np.float16)
    np.testing.assert_allclose(got, attention_twin(q, k, v, first, last), atol=2e-5)
    for isa in ISAS:  # a row is the same alone, whatever shares its pass
        for r in range(rows):
            alone = K.attend(isa, q[r:r + 1], k if dtype == "float32" else k.astype(np.float32),
                             v if dtype == "float32" else v.astype(np.float32), first[r:r + 1], last[r:r + 1], dtype)
            assert alone.tobytes() == got[r].tobytes()


@pytest.mark.parametrize("dim", [7, 8, 12, 16, 32, 40, 64, 80, 96, 112, 128, 256])
@pytest.mark.parametrize("rows", [1, 3, 4, 13])
def test_attention_over_int8_keys_and_values(dim, rows):
    """The codes are as defined; queries and weights are rounded to 1 / 8,192 of their largest: far less loss."""
    tokens = 600
    k, v = (RNG.standard_normal((tokens, dim)).astype(np.float32) * scale for scale in (1.0, 3.0))
    k[:, dim // 2] *= 8  # what the rotation is for
    v[::7] *= 0.01
    q = (RNG.standard_normal((rows, dim)) / np.sqrt(dim)).astype(np.float32)
    last = [int(t) for t in RNG.integers(0, tokens, rows)]
    last[0] = tokens - 1
    first = [max(0, t - window + 1) for t, window in zip(last, RNG.integers(1, 500, rows), strict=True)]
    first[-1] = 0
    got = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, "int8"))
    want = attention_twin(hadamard(q), int8_rounded(hadamard(k)), int8_rounded(v), first, last)
    loss = np.abs(want - attention_twin(q, k, v, first, last)).mean()
    assert np.abs(got - want).mean() < 0.1 * loss
    np.testing.assert_allclose(got, want, atol=0.01)
    for isa in ISAS:  # a row is the same alone, whatever shares its pass
        for r in range(rows):
            alone = K.attend(isa, q[r:r + 1], k, v, first[r:r + 1], last[r:r + 1], "int8")
            assert alone.tobytes() == got[r].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("times", [1, 4])
def test_attention_computed_in_parts_is_the_same(dtype, times):
    k, v, q = (RNG.standard_normal((n, 48)).astype(np.float32) for n in (1000, 1000, 5 * times))
    first, last = [0, 300, 0, 999, 256] * times, [999, 400, 255, 999, 998] * times
    whole = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, dtype))
    parts = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, dtype, in_parts=True))
    assert whole.tobytes() == parts.tobytes()


def test_int8_keys_and_values_of_any_size():
    k, v = (np.zeros((5, 16), np.float32) for _ in "kv")
    k[1], k[2, 3], k[3, 5], k[4] = 1e-42, np.inf, np.nan, 3e38
    v[1], v[2, 3], v[3, 5], v[4] = 1e-42, -np.inf, np.nan, 3e38
    for q in (np.full((1, 16), 1e-6, np.float32), np.zeros((1, 16), np.float32), np.full((1, 16), 1e-43, np.float32)):
        got = on_every_isa(lambda isa, q=q: K.attend(isa, q, k, v, [0], [4], "int8"))
        assert np.isfinite(got).all() and np.abs(got).max() <= 66000


def test_float16_keys_saturate_instead_of_overflowing():
    k = np.full((3, 16), 1e6, np.float32)
    v = np.full((3, 16), -1e6, np.float32)
    got = on_every_isa(lambda isa: K.attend(isa, np.full((1, 16), 1e-3, np.float32), k, v, [0], [2], "float16"))
    assert np.array_equal(got, np.full((1, 16), -65504.0, np.float32))


# ---------------------------------------------------------------- layouts beyond 4-bit groups of 32


def random_codes(rows: int, inputs: int, bits: int, group: int, dtype: str):
    """Words (eight, ten or four codes each), scales, and the weights they stand for."""
    groups, per_word = -(-inputs // group), 32 // bits
    codes = RNG.integers(0, 2**bits, (rows, groups * group), dtype=np.uint32)
    shifts = bits * np.arange(per_word, dtype=np.uint32)
    words = (codes.reshape(rows, -1, per_word) << shifts).sum(-1, dtype=np.uint32)
    scales = (RNG.standard_normal((rows, groups)) * 0.05).astype(DTYPES[dtype])
    zero = 2 ** (bits - 1) - 1
    weight = (codes.astype(np.float64) - zero) * np.repeat(scales.astype(np.float64), group, 1)
    return words, scales, weight[:, :inputs]


def random_awq(rows: int, inputs: int, group: int):
    """AWQ's tensors: output j stands in slot (j % 8) % 2 * 4 + (j % 8) // 2 of word j // 8."""
    groups = -(-inputs // group)
    codes, zeros = (RNG.integers(0, 16, (n, rows), dtype=np.uint32) for n in (inputs, groups))
    scales = (RNG.standard_normal((groups, rows)) * 0.05).astype(np.float16)
    slots = np.array([(j % 2) * 4 + j // 2 for j in range(8)], dtype=np.uint32)

    def pack(array):
        return (array.reshape(len(array), -1, 8) << (4 * slots)).sum(-1, dtype=np.uint32)

    weight = (codes.astype(np.float64) - np.repeat(zeros, group, 0)[:inputs]) * np.repeat(
        scales.astype(np.float64), group, 0)[:inputs]
    return pack(codes), pack(zeros), scales, weight.T


def check_product(weight, x, got, activations, group):
    if activations == "int8":
        codes, scales = int8_twin(x, group)
        x = codes[:, : x.shape[1]].astype(np.float64) * np.repeat(scales.astype(np.float64), group, 1)[:, : x.shape[1]]
    x = x.astype(np.float64)
    bound = 2e-6 * (np.abs(x) @ np.abs(weight).T) + 1e-30
    assert (np.abs(got - x @ weight.T) <= bound).all()


@pytest.mark.parametrize(("bits", "group", "dtype"), [(3, 40, "float16"), (8, 32, "float16"), (8, 32, "bfloat16")])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 8), (17, 33), (40, 101), (33, 160)])
@pytest.mark.parametrize("columns", [1, 3, 12, 27])
@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_other_code_widths(bits, group, dtype, rows, inputs, columns, activations):
    words, scales, weight = random_codes(rows, inputs, bits, group, dtype)
    x = RNG.standard_normal((columns, inputs)).astype(np.float32)
    got = on_every_isa(lambda isa: K.matmul(
        isa, raw(words), raw(scales), dtype, rows, x, activations, bits=bits, group=group))
    check_product(weight, x, got, activations, group)


@pytest.mark.parametrize(("rows", "inputs"), [(8, 128), (24, 256), (40, 200)])
@pytest.mark.parametrize("columns", [1, 5, 13])
@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_zero_points_of_every_group(rows, inputs, columns, activations):
    words, zeros, scales, weight = random_awq(rows, inputs, 128)
    x = RNG.standard_normal((columns, inputs)).astype(np.float32)
    got = on_every_isa(lambda isa: K.matmul(
        isa, raw(words), raw(scales), "float16", rows, x, activations, zeros=raw(zeros), group=128))
    check_product(weight, x, got, activations, 32)


def test_layouts_without_a_kernel_are_refused():
    words, scales, _ = random_codes(16, 40, 3, 40, "bfloat16")
    with pytest.raises(ValueError, match="no kernel runs 4-bit codes in groups of 40"):
        K.matmul(ISAS[0], raw(words), raw(scales), "bfloat16", 16, np.zeros((1, 40), np.float32), bits=3, group=40)


# ---------------------------------------------------------------- what families differ in


@pytest.mark.parametrize("n", [1, 15, 16, 17, 72, 768])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(n, with_bias):
    x = (RNG.standard_normal(n) + 3).astype(np.float32)
    weight, bias = RNG.standard_normal(n).astype(np.float32), RNG.standard_normal(n).astype(np.float32)
    got = on_every_isa(lambda isa: K.layer_norm(isa, x, weight, bias if with_bias else None, 1e-5))
    wide = x.astype(np.float64)
    want = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5) * weight + (bias if with_bias else 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("half", [1, 6, 16, 33])
def test_interleaved_rope(half):
    x, angle = RNG.standard_normal(2 * half).astype(np.float32), RNG.standard_normal(half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = on_every_isa(lambda isa: K.rope(isa, x, cos, sin, True))
    a, b = x[::2], x[1::2]
    assert np.array_equal(got, np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(-1))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
def test_activations(name):
    x = np.concatenate([np.linspace(-12, 12, 401), [0.0, -100.0, 100.0]]).astype(np.float32)[:, None]
    one = np.ones((1, 1), np.float32)
    got = on_every_isa(lambda isa: K.matmul(
        isa, raw(one), None, "float32", 1, x, "float32", "activate", activation=name))[:, 0]
    wide = x[:, 0].astype(np.float64)
    erf = np.vectorize(math.erf)
    want = {
        "silu": lambda: wide / (1 + np.exp(-wide)),
        "gelu": lambda: wide / 2 * (1 + erf(wide / np.sqrt(2))),
        "gelu_tanh": lambda: wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))),
        "relu": lambda: np.maximum(wide, 0),
        "relu2": lambda: np.maximum(wide, 0) ** 2,
    }[name]()
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_scaled_results():
    words, scales, _ = random_groups(20, 64, "float16")
    x, start = (RNG.standard_normal((3, n)).astype(np.float32) for n in (64, 20))
    plain = K.matmul(ISAS[-1], raw(words), raw(scales), "float16", 20, x)
    got = on_every_isa(lambda isa: K.matmul(
        isa, raw(words), raw(scales), "float16", 20, x, epilogue="add", start=start, scale=0.25))
    assert np.array_equal(got, start + plain * np.float32(0.25))


def test_soft_cap():
    x = np.linspace(-200, 200, 333).astype(np.float32)
    got = on_every_isa(lambda isa: K.soft_cap(isa, x, 30.0))
    np.testing.assert_allclose(got, 30 * np.tanh(x.astype(np.float64) / 30), atol=1e-5)


def test_attention_with_capped_scores():
    k, v, q = (RNG.standard_normal((n, 32)).astype(np.float32) * 2 for n in (300, 300, 5))
    first, last = [0] * 5, [10, 50, 299, 200, 255]
    got = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, "float32", 5.0))
    for r in range(5):
        scores = 5 * np.tanh(k[: last[r] + 1].astype(np.float64) @ q[r] / 5)
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(got[r], weights / weights.sum() @ v[: last[r] + 1], atol=3e-5)
    rounded = on_every_isa(lambda isa: K.attend(isa, q, k, v, first, last, "int8", 5.0))
    np.testing.assert_allclose(rounded, got, atol=0.1)

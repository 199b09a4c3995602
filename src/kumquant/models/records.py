"""Which records a cache tensor becomes in a mode: their names, shapes and dtypes, and whether it is quantized at all.

Source: docs/modes.md (shared/conformance/FORMAT.md 4.1, 4.2, 4.7).
"""

from __future__ import annotations

from ..errors import UnsupportedError
from ..schemes import Scheme
from .plan import CacheTensor

# (name, shape, logical dtype), as tensor_cache plans them.
RecordShape = tuple[str, tuple[int, ...], str]

# What the format calls a head, by name. Heads of other names (internlm2's "output") are linears like any other.
_HEAD_STEMS = ("lm_head", "lm_head.linear", "embed_out", "head")
_MAX_ROUTER_OUTPUTS = 256


def is_quantized(tensor: CacheTensor, scheme: Scheme) -> bool:
    """Whether ``scheme`` stores the tensor as codes.

    Never: norms, biases, and routers (modules whose name ends in "gate") of at most 256 outputs.
    """
    if not scheme.is_quantized or tensor.kind == "plain":
        return False
    is_gate = tensor.kind == "router" or (tensor.kind == "linear" and tensor.stem.endswith("gate"))
    if is_gate and tensor.shape[0] <= _MAX_ROUTER_OUTPUTS:
        return False
    return scheme.quantize_ends or not (tensor.kind == "embedding" or tensor.stem in _HEAD_STEMS)


def scheme_of(tensor: CacheTensor, scheme: Scheme) -> Scheme:
    """``scheme`` as it applies to the tensor: only linears are ever stored transposed."""
    return scheme.for_kind("linear" if tensor.kind == "router" else tensor.kind)


def records_of(tensor: CacheTensor, scheme: Scheme) -> tuple[RecordShape, ...]:
    """The records of the tensor in emission order: one if it is plain.

    Raises UnsupportedError for stacked experts in a mode that has no place for them.
    """
    if not is_quantized(tensor, scheme):
        return ((tensor.name, tensor.shape, tensor.dtype or scheme.model_dtype),)
    return packed_records(tensor, scheme)


def packed_records(tensor: CacheTensor, scheme: Scheme) -> tuple[RecordShape, ...]:
    """The records of the tensor once it is quantized. Raises as ``records_of``."""
    if scheme.storage in ("awq", "groups") and scheme.layout != "NK" and tensor.kind == "experts":
        raise UnsupportedError(
            f"the mode {scheme.name} has no place for stacked experts", where=tensor.name,
            hint=f"Choose {scheme.name.removesuffix('_0')}_1." if scheme.layout == "KN" else "Choose another mode.",
        )
    if scheme.storage == "groups":
        return _groups(tensor, scheme_of(tensor, scheme))
    if scheme.storage == "awq":
        rows, width = tensor.shape
        words = -(-rows // scheme.codes_per_word)
        groups = scheme.num_groups(width)
        return ((f"{tensor.stem}.qweight", (width, words), "uint32"),
                (f"{tensor.stem}.qzeros", (groups, words), "uint32"),
                (f"{tensor.stem}.scales", (groups, rows), scheme.model_dtype))
    raise UnsupportedError("the records of this mode are not known beforehand", where=scheme.name)


def _groups(tensor: CacheTensor, scheme: Scheme) -> tuple[RecordShape, ...]:
    *leading, width = tensor.shape
    codes, scales = (*leading, scheme.num_words(width)), (*leading, scheme.num_groups(width))
    if scheme.layout == "KN":
        codes, scales = codes[::-1], scales[::-1]
    return ((f"{tensor.stem}.q_weight", codes, "uint32"), (f"{tensor.stem}.q_scale", scales, scheme.model_dtype))

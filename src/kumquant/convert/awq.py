"""The mode q4f16_autoawq: an AWQ checkpoint's own codes, zero points and scales under the cache's names.

Source: docs/modes.md, "AWQ" (shared/conformance/FORMAT.md 4.7).
"""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint import Checkpoint
from ..errors import UnsupportedError
from ..models import CacheTensor, is_quantized, records_of
from ..schemes import Scheme

_METHOD = "4-bit AWQ"
_PARTS = ("qweight", "qzeros", "scales")


def parts_of(tensors: Iterable[CacheTensor], checkpoint: Checkpoint, scheme: Scheme) -> list[CacheTensor]:
    """The same tensors with every linear that the mode packs in its three parts; sources side by side.

    checkpoint: the unpacked one, for its description of layers. Raises UnsupportedError unless all those linears are
    AWQ's "gemm" version with the mode's group size.
    """
    result: list[CacheTensor] = []
    for tensor in tensors:
        if not is_quantized(tensor, scheme):
            result.append(tensor)
            continue
        for name in tensor.sources:
            _check_source(name, tensor, checkpoint, scheme)
        for part, (name, shape, dtype) in zip(_PARTS, records_of(tensor, scheme), strict=True):
            sources = tuple(f"{source.removesuffix('.weight')}.{part}" for source in tensor.sources)
            columns = (source[0] if part == "scales" else source[0] // scheme.codes_per_word
                       for source in tensor.source_shapes)
            result.append(CacheTensor(
                name, "plain", shape, sources, tuple((shape[0], count) for count in columns),
                dtype="uint32" if dtype == "uint32" else None, side_by_side=True))
    return result


def _check_source(name: str, tensor: CacheTensor, checkpoint: Checkpoint, scheme: Scheme) -> None:
    info = checkpoint.tensors.get(name)
    if info is None:
        return  # reported with everything else that is missing
    rows, width = info.shape
    layer = f"{name.removesuffix('.weight')}.scales"
    found = checkpoint.parts().tensors.get(layer)
    reason = None
    if not info.stored_as.startswith(_METHOD) or found is None:
        reason = f"{name} is {info.stored_as or info.dtype}"
    elif width % scheme.group_size or rows % scheme.codes_per_word:
        reason = f"{name} has {rows} outputs and {width} inputs"
    elif found.shape[0] != width // scheme.group_size:
        reason = f"{name} is {info.stored_as}"
    elif tensor.row_order or tensor.transposed or tensor.plus_one:
        reason = f"{name} would have to be reordered"
    if reason:
        raise UnsupportedError(
            f"{scheme.name} is made from checkpoints that AWQ quantized, and takes over their own bytes",
            where=checkpoint.folder, found=reason,
            expected=f"{_METHOD}, group {scheme.group_size}, in every linear layer",
            hint="Choose another mode, q4f16_1 for instance: every source converts to it.",
        )

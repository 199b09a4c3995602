"""What a bare manifest tells about its model: family, dimensions, mode. For ``inspect`` without the other
files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..schemes import Scheme
from ..tensor_cache import Manifest, Record
from .family import Family
from .modes import parameter_name, possible_schemes
from .registry import FAMILIES

_LAYER = re.compile(r"\.(\d+)\.")
_FLAGS_OF_EVERY_FAMILY = ("tied", "experts")
# Head widths that models have, the likeliest first.
_HEAD_DIMS = (64, 128, 96, 80, 256, 32, 48, 112, 16)


@dataclass(frozen=True)
class Description:
    """A model as far as names and shapes of its records tell. None: they do not tell.

    families: every family that the names fit, the likeliest first. inferred: fields that are a guess among
    several possibilities. quantization: a mode that fits the dtypes. num_values: checkpoint values behind the
    cache. bits_per_param: the manifest's own figure; stored_bits_per_param: stored bits divided by
    num_values.
    """

    families: tuple[str, ...] = ()
    quantization: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool | None = None
    inferred: tuple[str, ...] = ()
    num_values: int | None = None
    bits_per_param: float | None = None
    stored_bits_per_param: float | None = None

    @property
    def family(self) -> str | None:
        return self.families[0] if self.families else None


def describe(manifest: Manifest) -> Description:
    """Everything the names, shapes and dtypes of a manifest tell. Never raises; what is unclear is None."""
    records = {record.name: record for record in manifest.records()}
    schemes = possible_schemes(records)
    num_values = manifest.num_values
    bits = manifest.metadata.get("BitsPerParam")
    families = [family for family in FAMILIES.values() if _fits(family, records)]
    shared: dict[str, Any] = {
        "quantization": schemes[0].name if schemes else None,
        "num_values": num_values,
        "bits_per_param": float(bits) if isinstance(bits, (int, float)) else None,
        "stored_bits_per_param": manifest.nbytes * 8 / num_values if num_values else None,
    }
    if not families:
        return Description(**shared)
    reader = next((reader for scheme in schemes if (reader := _Reader(families[0], records, scheme)).widths_fit),
                  _Reader(families[0], records, None))
    return reader.describe(tuple(family.model_type for family in families), shared)


def _fits(family: Family, records: dict[str, Record]) -> bool:
    """Whether the records are the family's tensors: all that every model of it has, and no others."""
    found = {_LAYER.sub(".{i}.", parameter_name(name)) for name in records}
    table = {rule.name: rule for rule in family.tensors}
    required = {name for name, rule in table.items() if rule.role != "head" and (
        rule.when is None or family.flags.get(rule.when) is True)}
    possible = {name for name, rule in table.items()
                if rule.when is None or rule.when.removeprefix("not ") in {*family.flags, *_FLAGS_OF_EVERY_FAMILY}}
    return required <= found <= possible


class _Reader:
    """Reads dimensions off the records of one family, under the assumption that ``scheme`` is their mode."""

    def __init__(self, family: Family, records: dict[str, Record], scheme: Scheme | None) -> None:
        self.family, self.records, self.scheme = family, records, scheme
        self.hidden_size = self.rows("attn_norm") or self.rows("final_norm") or self.rows("down")

    def rows(self, role: str) -> int | None:
        """Output width, of all parts of the role together.

        Unknown in a quantized cache whose mode is not known (it may be transposed).
        """
        shapes = [shape for name in self._names(role) if (shape := self._shape(name, role))]
        return sum(shape[0] for shape in shapes) or None

    def width(self, role: str) -> int | None:
        """Input width; for a quantized matrix the width with the last group filled up."""
        shapes = [shape for name in self._names(role) if (shape := self._shape(name, role)) and len(shape) == 2]
        return shapes[0][1] if shapes else None

    @property
    def widths_fit(self) -> bool:
        """Whether the matrices whose input width is known have the words that the mode gives them.

        Three and four bits come in as many words per group.
        """
        if self.scheme is None or not self.scheme.has_groups:
            return True
        for role, width in (("embed", self.hidden_size), ("qkv", self.hidden_size), ("down", self.intermediate_size)):
            filled = self.width(role)
            is_plain = any(name in self.records for name in self._names(role))
            if width and filled and not is_plain and filled != self.scheme.num_groups(width) * self.scheme.group_size:
                return False
        return True

    @property
    def intermediate_size(self) -> int | None:
        gate_up = self.rows("gate_up")
        return gate_up // 2 if gate_up else self.rows("up")

    def _names(self, role: str) -> list[str]:
        """What tensors of the role can be called, in the first layer."""
        return [rule.name.replace("{i}", "0") for rule in self.family.tensors if rule.role == role]

    def _shape(self, name: str, role: str) -> tuple[int, ...] | None:
        """Logical shape of a tensor, (rows, width) for a matrix; None if it is not there."""
        if name in self.records:
            return self.records[name].shape
        scheme, stem = self.scheme, name.removesuffix(".weight")
        packed = self.records.get(f"{stem}.q_weight") or self.records.get(f"{stem}.qweight")
        if packed is None or len(packed.shape) != 2:
            return None
        if scheme is None:
            return packed.shape[:1] if role == "embed" else None
        if scheme.storage == "float8":
            return packed.shape
        if scheme.storage == "awq":
            return packed.shape[1] * scheme.codes_per_word, packed.shape[0]
        rows, words = packed.shape if scheme.layout == "NK" or role == "embed" else packed.shape[::-1]
        return rows, words * scheme.codes_per_word

    def describe(self, families: tuple[str, ...], shared: dict[str, Any]) -> Description:
        layers = {int(match[1]) for match in map(_LAYER.search, self.records) if match}
        heads, inferred = self._heads()
        fields: dict[str, Any] = {**shared, **heads}
        fields["quantization"] = self.scheme.name if self.scheme else None
        return Description(
            families=families, vocab_size=self.rows("embed"), hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size, num_hidden_layers=len(layers),
            tie_word_embeddings=None if self.family.is_encoder else not self.family.names_hold_head(self.records),
            inferred=inferred, **fields,
        )

    def _heads(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Head counts. Shapes have only the total widths of queries and keys; q_norm tells the head's."""
        qkv, query_width = self.rows("qkv"), self.width("o")
        if not qkv or not query_width:
            return {}, ()
        known = None if self.family.traits.get("qk_norm_over_all") else self.rows("q_norm")
        padding = self.scheme.group_size if self.scheme and self.scheme.has_groups else 1
        options: list[tuple[int, int, int]] = []
        for head_dim in (known,) if known else _HEAD_DIMS:
            for width in range(query_width, query_width - padding, -1):
                key_width = (qkv - width) // 2
                if (qkv - width) % 2 == 0 and key_width > 0 and width % head_dim == 0 == key_width % head_dim:
                    num_heads, num_kv_heads = width // head_dim, key_width // head_dim
                    if num_heads % num_kv_heads == 0:
                        options.append((head_dim, num_heads, num_kv_heads))
        if not options:
            return {}, ()
        best = min(options, key=lambda option: _unlikeliness(option, self.hidden_size or 0))
        heads = dict(zip(("head_dim", "num_attention_heads", "num_key_value_heads"), best))
        return heads, () if known else tuple(heads)


def _unlikeliness(heads: tuple[int, int, int], hidden_size: int) -> tuple[int, int]:
    """Lower is likelier. Grouped heads mostly come in eight groups; wide models have no narrow heads."""
    head_dim, num_heads, num_kv_heads = heads
    eight_groups = num_kv_heads == 8 and num_heads > 8 and head_dim >= (32 if hidden_size < 1024 else 64)
    rank = _HEAD_DIMS.index(head_dim) if head_dim in _HEAD_DIMS else len(_HEAD_DIMS)
    return (0 if eight_groups else 1, rank)

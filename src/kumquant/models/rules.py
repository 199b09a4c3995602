"""TensorRule: one line of a family's table of tensors, and short ways to write the usual ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig
from .plan import CacheTensor, Kind

# How the rows of a fused q, k, v lie in the checkpoint; in the cache they are all q, all k, all v.
# "q, k, v of each head": as many keys as queries (GPT-NeoX). "q, k, v of each kv head": the queries that share a
# key, then the key, then the value (InternLM2).
RowOrder = Literal["q, k, v of each head", "q, k, v of each kv head"]


@dataclass(frozen=True)
class Source:
    """One checkpoint tensor: its name and its axes by name (see ModelConfig.size).

    "{i}" is the layer, "{e}" an expert: then the source stands for as many tensors as there are experts.
    """

    name: str
    axes: tuple[str, ...]


@dataclass(frozen=True)
class TensorRule:
    """One line of a family's table: a cache tensor, its part in the forward pass, and where it comes from.

    role: what DecoderSpec.tensors calls it; rules of one role are stacked there in the table's order. sources:
    stacked along axis 0. when: the ModelConfig flag without which the tensor does not exist ("not tied": with
    which). transposed, plus_one, dtype: see CacheTensor. row_order: the rows are sorted.
    """

    role: str
    name: str
    kind: Kind
    sources: tuple[Source, ...]
    when: str | None = None
    transposed: bool = False
    plus_one: bool = False
    dtype: str | None = None
    row_order: RowOrder | None = None

    @property
    def is_per_layer(self) -> bool:
        return "{i}" in self.name

    def exists(self, config: ModelConfig) -> bool:
        return self.when is None or config.has(self.when)

    def tensor(self, config: ModelConfig, layer: int, source_name: Callable[[str], str] = str) -> CacheTensor:
        """The tensor of one layer. source_name: how the checkpoint at hand calls a source."""
        count = config.experts.count if self.kind == "experts" and config.experts else 1
        sources = [
            (source.name.replace("{i}", str(layer)).replace("{e}", str(expert)), config.sizes(source.axes))
            for expert in range(count) for source in self.sources
        ]
        shapes = tuple(shape for _, shape in sources)
        rows, rest = sum(shape[0] for shape in shapes), shapes[0][1:]
        shape: tuple[int, ...] = (rows, *rest)
        if self.transposed:
            shape = shape[::-1]
        if self.kind == "experts":
            shape = (count, rows // count, *rest)
        return CacheTensor(
            name=self.name.replace("{i}", str(layer)), kind=self.kind, shape=shape,
            sources=tuple(source_name(name) for name, _ in sources), source_shapes=shapes,
            is_head=self.role == "head", row_order=_ROW_ORDERS[self.row_order](config) if self.row_order else (),
            transposed=self.transposed, plus_one=self.plus_one, dtype=self.dtype,
        )


def same(role: str, name: str, kind: Kind, *axes: str, when: str | None = None) -> TensorRule:
    """A tensor that has the same name in checkpoint and cache."""
    return TensorRule(role, name, kind, (Source(name, axes),), when)


def moved(role: str, name: str, source: str, kind: Kind, *axes: str, when: str | None = None) -> TensorRule:
    """A tensor that has another name in the checkpoint."""
    return TensorRule(role, name, kind, (Source(source, axes),), when)


def fused(role: str, name: str, kind: Kind, *sources: tuple[str, ...], when: str | None = None) -> TensorRule:
    """A tensor stacked from several, each given as its name and its axes."""
    return TensorRule(role, name, kind, tuple(Source(source, tuple(axes)) for source, *axes in sources), when)


def layer_norm(role: str, name: str, source: str = "") -> tuple[TensorRule, TensorRule]:
    """A norm's weight and bias; name and source without the ending."""
    source = source or name
    return (moved(role, f"{name}.weight", f"{source}.weight", "plain", "hidden"),
            moved(f"{role}_bias", f"{name}.bias", f"{source}.bias", "plain", "hidden"))


def linear(role: str, name: str, rows: str, columns: str, source: str = "",
           bias: str | None = None) -> tuple[TensorRule, TensorRule]:
    """A matrix and its bias; name and source without the ending. bias: the flag that the bias depends on."""
    source = source or name
    return (moved(role, f"{name}.weight", f"{source}.weight", "linear", rows, columns),
            moved(f"{role}_bias", f"{name}.bias", f"{source}.bias", "plain", rows, when=bias))


def qkv(name: str, sources: str, bias: str | None = None) -> tuple[TensorRule, TensorRule]:
    """Queries, keys and values in one matrix, with their bias. sources: where q_proj, k_proj and v_proj are."""
    parts = (("q_proj", "q"), ("k_proj", "kv"), ("v_proj", "kv"))
    return (fused("qkv", f"{name}.weight", "linear", *((f"{sources}{part}.weight", rows, "hidden")
                                                       for part, rows in parts)),
            fused("qkv_bias", f"{name}.bias", "plain", *((f"{sources}{part}.bias", rows) for part, rows in parts),
                  when=bias))


def _rows_of_heads(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    heads, dim = config.num_attention_heads, config.head_dim
    return tuple(((head * 3 + part) * dim, (head * 3 + part + 1) * dim) for part in range(3) for head in range(heads))


def _rows_of_kv_heads(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    groups, dim = config.num_key_value_heads, config.head_dim
    share = config.num_attention_heads // groups
    whole = (share + 2) * dim
    parts = ((0, share * dim), (share * dim, (share + 1) * dim), ((share + 1) * dim, whole))
    return tuple((group * whole + begin, group * whole + end) for begin, end in parts for group in range(groups))


_ROW_ORDERS: dict[RowOrder, Callable[[ModelConfig], tuple[tuple[int, int], ...]]] = {
    "q, k, v of each head": _rows_of_heads, "q, k, v of each kv head": _rows_of_kv_heads,
}

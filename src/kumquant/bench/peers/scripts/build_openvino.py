"""Builds an OpenVINO model folder from the arrays that kumquant wrote. Runs by itself, in the Python that has openvino.

    python build_openvino.py ARRAYS OUT

The graph is what optimum-intel exports for a Llama: a stateful decoder with all matrices int4, symmetric, groups of 32,
in the shape that OpenVINO's own passes know (rope, RMS norm, compressed weights, paged attention).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as op

Node = Any
LAST = 2**63 - 1


class Builder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self._kept: list[object] = []  # int4 constants share the memory of their arrays
        self.sinks: list[Node] = []
        self._heads, self._kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self._head_dim = self.config["head_dim"]

    def model(self) -> openvino.Model:
        parameters = {
            name: op.parameter([-1] * rank, dtype, name=name)
            for name, rank, dtype in (("input_ids", 2, np.int64), ("attention_mask", 2, np.int64),
                                      ("position_ids", 2, np.int64), ("beam_idx", 1, np.int32))
        }
        for name, parameter in parameters.items():
            parameter.output(0).get_tensor().set_names({name})
        ids = parameters["input_ids"]
        self._beam = parameters["beam_idx"]
        self._batch = op.gather(op.shape_of(ids, "i64"), ints([0]), ints(0))
        self._mask = causal_mask(ids, parameters["attention_mask"])
        self._cos, self._sin = self._rotary(parameters["position_ids"])

        embed = self._weight("embed")
        x = op.gather(embed, op.convert(ids, np.int32), ints(0))
        for layer in range(self.config["num_hidden_layers"]):
            x = op.add(x, self._attention(self._norm(x, f"attn_norm.{layer}"), layer))
            x = op.add(x, self._mlp(self._norm(x, f"mlp_norm.{layer}"), layer))
        x = self._norm(x, "final_norm")
        logits = op.matmul(x, embed if self.config["tie_word_embeddings"] else self._weight("head"), False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return openvino.Model([op.result(logits)], self.sinks, list(parameters.values()), "decoder")

    def _attention(self, x: Node, layer: int) -> Node:
        queries = self._rotated(self._split(self._linear(x, f"q.{layer}"), self._heads))
        keys = self._rotated(self._split(self._linear(x, f"k.{layer}"), self._kv_heads))
        values = self._split(self._linear(x, f"v.{layer}"), self._kv_heads)
        keys = self._cached(keys, f"past_key_values.{layer}.keypresent.{layer}.key")
        values = self._cached(values, f"past_key_values.{layer}.valuepresent.{layer}.value")
        scale = floats(self.config["attention_scale"])
        mixed = op.scaled_dot_product_attention(queries, keys, values, self._mask, scale, causal=False)
        joined = op.reshape(op.transpose(mixed, ints([0, 2, 1, 3])), ints([0, 0, self._heads * self._head_dim]), True)
        return self._linear(joined, f"o.{layer}")

    def _mlp(self, x: Node, layer: int) -> Node:
        inner = op.multiply(op.swish(self._linear(x, f"gate.{layer}")), self._linear(x, f"up.{layer}"))
        return self._linear(inner, f"down.{layer}")

    def _split(self, x: Node, heads: int) -> Node:
        """(batch, length, heads * head_dim) to (batch, heads, length, head_dim)."""
        return op.transpose(op.reshape(x, ints([0, 0, heads, self._head_dim]), True), ints([0, 2, 1, 3]))

    def _cached(self, new: Node, name: str) -> Node:
        """The state ``name`` grown by ``new``, its heads repeated for the query heads that share them."""
        empty = op.broadcast(floats(0.0), op.concat([self._batch, ints([self._kv_heads, 0, self._head_dim])], 0))
        shape = openvino.PartialShape([-1, self._kv_heads, -1, self._head_dim])
        past = op.gather(op.read_value(empty, name, np.float32, shape), self._beam, ints(0))
        grown = op.concat([past, new], -2)
        self.sinks.append(op.assign(grown, name))
        if self._heads == self._kv_heads:
            return grown
        sizes = op.shape_of(grown, "i64")
        first, rest = (op.gather(sizes, ints(which), ints(0)) for which in ([0, 1], [2, 3]))
        target = op.concat([first, ints([self._heads // self._kv_heads]), rest], 0)
        wide = op.broadcast(op.unsqueeze(grown, ints(2)), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, ints([0, self._heads, -1, self._head_dim]), True)

    def _rotary(self, positions: Node) -> tuple[Node, Node]:
        frequencies = op.constant(np.load(self._folder / "frequencies.npy").reshape(1, -1, 1))
        angles = op.matmul(frequencies, op.convert(op.unsqueeze(positions, ints(1)), np.float32), False, False)
        angles = op.transpose(angles, ints([0, 2, 1]))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), ints(1)), op.unsqueeze(op.sin(both), ints(1))

    def _rotated(self, x: Node) -> Node:
        half = self._head_dim // 2
        low = op.slice(x, ints([0]), ints([half]), ints([1]), ints([3]))
        high = op.slice(x, ints([half]), ints([LAST]), ints([1]), ints([3]))
        turned = op.concat([op.multiply(high, floats(-1.0)), low], -1)
        return op.add(op.multiply(x, self._cos), op.multiply(turned, self._sin))

    def _norm(self, x: Node, name: str) -> Node:
        mean = op.reduce_mean(op.power(x, floats(2.0)), ints([-1]), True)
        factor = op.divide(floats(1.0), op.sqrt(op.add(mean, floats(self.config["rms_norm_eps"]))))
        weight = np.load(self._folder / f"{name}.npy")
        return op.multiply(op.multiply(x, factor), op.constant(weight[None, None]))

    def _linear(self, x: Node, name: str) -> Node:
        return op.matmul(x, self._weight(name), False, True)

    def _weight(self, name: str) -> Node:
        """codes: (rows, width / 2) int4 pairs; scales: (rows, width / 32) float16. Gives (rows, width) float32."""
        codes, scales = (np.load(self._folder / f"{name}.{part}.npy") for part in ("codes", "scales"))
        rows, groups = scales.shape
        group = 2 * codes.shape[1] // groups
        packed = openvino.Tensor(codes.reshape(-1), [rows, groups, group], openvino.Type.i4)
        self._kept += [codes, packed]
        values = op.multiply(op.convert(op.constant(packed), np.float16), op.constant(scales.reshape(rows, groups, 1)))
        return op.convert(op.reshape(values, ints([rows, groups * group]), False), np.float32)


def causal_mask(ids: Node, attention_mask: Node) -> Node:
    """(batch, 1, length, total) float32, to add to scores."""
    length = op.gather(op.shape_of(ids, "i64"), ints(1), ints(0))
    total = op.gather(op.shape_of(attention_mask, "i64"), ints(1), ints(0))
    columns = op.unsqueeze(op.range(ints(0), total, ints(1), "i64"), ints([0, 1, 2]))
    rows = op.unsqueeze(op.range(op.subtract(total, length), total, ints(1), "i64"), ints([0, 1, 3]))
    given = op.convert(op.unsqueeze(attention_mask, ints([1, 2])), "boolean")
    seen = op.logical_and(op.less_equal(columns, rows), given)
    return op.select(seen, floats(0.0), floats(float(np.finfo(np.float32).min)))


def ints(values: int | list[int]) -> Node:
    return op.constant(np.asarray(values, np.int64))


def floats(value: float) -> Node:
    return op.constant(np.asarray(value, np.float32))


def main() -> None:
    arrays, out = map(Path, sys.argv[1:3])
    builder = Builder(arrays)
    openvino.save_model(builder.model(), out / "openvino_model.xml", compress_to_fp16=False)
    (out / "config.json").write_text(json.dumps(builder.config, indent=2))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))


if __name__ == "__main__":
    main()

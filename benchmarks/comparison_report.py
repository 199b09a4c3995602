"""The tables of a comparison with other runtimes, from the single figures that compare_peers.py stored.

    python benchmarks/comparison_report.py benchmarks/results/NAME.json [more.json …] [docs/performance.md]

prints the tables, or puts them into a page in place of what follows its heading "Results".

A cell is the median over rounds (lowest–highest). A peer counts with the setting that has the better median of the
measure. "× the best" is Kumquant's figure over that of the best peer within one round, then the median of those
(lowest–highest); for times and memory, below 1 is better. "Of the limit" is Kumquant's share of what limits.c read in
the same round. Where rounds differ in where the two cores sat, told by their round trip beside the limits, a second
table splits them; a virtual machine may have moved within a round all the same.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from make_models import SHAPES, Shape, tensors

BITS_PER_WEIGHT = 4.5  # 4-bit codes, one 16-bit scale per 32: Q4_0 and q4f16_1 alike
MODELS = SHAPES | {"SmolLM2": Shape(576, 30, 9, 3, 1536, 49152, tied=True, rope_theta=1e5, context_length=8192)}
PEERS = {"llama.cpp": "llama.cpp", "ik_llama.cpp": "ik_llama.cpp", "openvino": "OpenVINO", "onnxruntime": "ORT"}
UNITS: dict[str, tuple[str, float]] = {  # what is not tokens/s: how it is called, and the factor to that unit
    "first token": ("open to first token, ms", 1e3),
    "peak memory": ("peak memory at the first token, MB", 1e-6),
    "peak memory, 512 and decode": ("peak memory, prefill and decode, MB", 1e-6),
}
SPEEDS = ("prefill 512", "decode @0", "decode @512", "decode @4096", "batch 8", "batch 32")
MEASURES = (*SPEEDS, *UNITS)
TWO_CHIPLETS_NS = 200  # round trips are 50 to 95 ns within a chiplet, 310 to 390 between two

Values = dict[int, float]  # round -> figure
Figures = dict[tuple[str, str, str], Values]  # (engine, setting, measure) -> round -> figure


def report(found: dict[str, Any]) -> str:
    machine, entries = found["machine"], found["entries"]
    dates = sorted({run["at"][:10] for run in found["runs"]})
    commits = ", ".join(dict.fromkeys(run["kumquant"] for run in found["runs"]))
    versions = "; ".join(f"{PEERS[name]}: {version}" for name, version in found["versions"].items())
    lines = [
        f"# Kumquant and its peers, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}",
        "",
        f"{machine['cpu']} (family {machine['cpu_family']}, model {machine['cpu_model']}), {machine['cpus']} CPUs, "
        f"cache {machine['cache']}, Linux {machine['kernel']}. Kumquant {commits}, q4f16_1. {versions}.",
        "",
    ]
    for name, shape in MODELS.items():
        for threads in sorted({entry["threads"] for entry in entries}, reverse=True):
            block = [entry for entry in entries if (entry["model"], entry["threads"]) == (name, threads)]
            if block:
                lines += [f"## {name}, {threads} thread{'s' if threads > 1 else ''}", "", *table(block, shape), ""]
                lines += table_by_place(block, shape)
    return "\n".join(lines)


def table(block: list[dict[str, Any]], shape: Shape) -> list[str]:
    """Markdown rows for one model at one thread count."""
    figures: Figures = defaultdict(dict)
    limits: dict[str, Values] = defaultdict(dict)
    for entry in block:
        for name, value in entry.get("limits", {}).items():
            limits[name][entry["round"]] = value
        for measure, value in entry.get("figures", {}).items():
            figures[entry["engine"], entry["setting"], measure][entry["round"]] = value
    peers = [name for name in PEERS if any(engine == name for engine, _, _ in figures)]
    lines = ["| tokens/s | " + " | ".join(["Kumquant", *(PEERS[name] for name in peers), "× the best", "of the limit"])
             + " |", "|---" * (4 + len(peers)) + "|"]
    for measure in MEASURES:
        own = {setting: values for (engine, setting, what), values in figures.items()
               if (engine, what) == ("kumquant", measure)}
        if not own:
            continue
        best = {name: at_better_setting(figures, name, measure) for name in peers}
        for setting, ours in sorted(own.items(), key=lambda one: one[0] != "default"):
            lines.append(row(measure, setting, ours, best, share_of_limit(measure, ours, shape, limits)))
    return [*lines, "", "Alongside: " + "; ".join(f"{what} {cell(values)}" for what, values in limits.items()) + "."]


def table_by_place(block: list[dict[str, Any]], shape: Shape) -> list[str]:
    """Kumquant's rows once more, rounds on one chiplet and on two apart; nothing where all were alike."""
    trips = {entry["round"]: entry["limits"].get("round trip, ns", 0.0) for entry in block if "limits" in entry}
    places = {"one chiplet": {number for number, trip in trips.items() if 0 < trip < TWO_CHIPLETS_NS},
              "two chiplets": {number for number, trip in trips.items() if trip >= TWO_CHIPLETS_NS}}
    if not all(places.values()):
        return []
    lines = ["| | place | rounds | Kumquant | × the best | of the limit |", "|---" * 6 + "|"]
    for place, rounds in places.items():
        there = [entry for entry in block if entry["round"] in rounds]
        for line in table(there, shape)[2:]:
            cells = [one.strip() for one in line.strip("|").split("|")]
            measure = cells[0].split(",")[0]
            if measure in SPEEDS:
                measured = {entry["round"] for entry in there
                            if entry.get("engine") == "kumquant" and measure in entry["figures"]}
                lines.append(f"| {cells[0]} | {place} | {len(measured)} | {cells[1]} | {cells[-2]} | {cells[-1]} |")
    return [*lines, ""]


def at_better_setting(figures: Figures, peer: str, measure: str) -> tuple[str, Values] | None:
    settings = {setting: values for (engine, setting, what), values in figures.items()
                if (engine, what) == (peer, measure)}
    if not settings:
        return None
    setting = better(measure)(settings, key=lambda name: median(settings[name].values()))
    return setting, settings[setting]


def better(measure: str) -> Callable[..., Any]:
    return min if measure in UNITS else max


def row(measure: str, setting: str, ours: Values, peers: dict[str, tuple[str, Values] | None], share: str) -> str:
    title, factor = UNITS.get(measure, (measure, 1.0))
    cells = [cell(ours, factor)]
    for found in peers.values():
        of_setting = f", {found[0]}" if found and found[0] != "default" else ""
        cells.append(cell(found[1], factor) + of_setting if found else "–")
    rivals = {name: found[1] for name, found in peers.items() if found and found[1].keys() & ours.keys()}
    ratio = "–"
    if rivals:
        best = better(measure)(rivals, key=lambda name: median(rivals[name].values()))
        paired = {number: ours[number] / rivals[best][number] for number in ours.keys() & rivals[best].keys()}
        ratio = f"{cell(paired, digits=2)} {PEERS[best]}"
    named = title if setting == "default" else f"{title}, {setting}"
    return f"| {named} | " + " | ".join([*cells, ratio, share]) + " |"


def share_of_limit(measure: str, ours: Values, shape: Shape, limits: dict[str, Values]) -> str:
    """Kumquant's share of what the machine could do at that moment, where one limit binds.

    Decode at context 0 reads every weight once a token, from DRAM or, up to 48 MB, from a cache. Prefill does two int8
    operations a weight and token, the head's apart, and the last layer's, of which only queries, keys and values are
    computed for every token; a batch of many has all of them, the head's too. Attention is not counted.

    Prefill has a second share, where its limits were read: of its speed if dot products ran as fast as the scales of
    every group of 32 allow, attention's as fast as float32 multiply-adds, and nothing else took time.
    """
    matrices = {t.name: float(np.prod(t.shape)) for t in tensors(shape) if len(t.shape) == 2}
    embedding = matrices.pop("model.embed_tokens.weight")
    head = matrices.pop("lm_head.weight", embedding)
    if measure in ("prefill 512", "batch 32"):
        for_all = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
        last = f"model.layers.{shape.num_layers - 1}."
        left_out = sum(size for name, size in matrices.items() if name.startswith(last) and not name.endswith(for_all))
        weights = sum(matrices.values()) + (head if measure.startswith("batch") else -left_out)
        work, limit, what = 2 * weights, "int8 dot, GOPS", "int8"
    elif measure == "decode @0":
        work = (sum(matrices.values()) + head) * BITS_PER_WEIGHT / 8
        size = "43MB" if work < 48e6 else "1GiB"
        limit, what = f"read {size}, GB/s", f"{size} read"
    else:
        return ""
    alongside = limits.get(limit, {})
    shares = [ours[number] * work / (alongside[number] * 1e9) for number in ours if number in alongside]
    if not shares:
        return ""
    share = f"{100 * median(shares):.0f} % {what}"
    scaled, floats = limits.get("int8 dot, scaled, GOPS", {}), limits.get("fp32 fma, GFLOPS", {})
    there = [number for number in ours if scaled.get(number) and number in floats]  # 0: not with these instructions
    if measure == "prefill 512" and there:
        attention = attention_operations(shape, 512) / 512
        bound = [ours[number] * (work / scaled[number] + attention / floats[number]) / 1e9 for number in there]
        share += f", {100 * median(bound):.0f} % with scales and attention"
    return share


def attention_operations(shape: Shape, tokens: int) -> float:
    """Multiplications and additions of scores and weighted values; the last layer's are of one token only."""
    pairs = (shape.num_layers - 1) * tokens * (tokens + 1) / 2 + tokens
    return pairs * 4 * shape.hidden_size


def cell(values: Values, factor: float = 1.0, digits: int | None = None) -> str:
    """Median (lowest–highest), with so many decimals, or one below 100 and none from there on."""
    ordered = sorted(factor * value for value in values.values())
    middle, low, high = median(ordered), ordered[0], ordered[-1]
    if digits is None:
        digits = 0 if middle >= 100 else 1
    if len(ordered) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def put_into(page: Path, texts: dict[Path, str]) -> None:
    """Replace the page's results by these, two heading levels down, each with the file it comes from."""
    before, heading, _ = page.read_text().partition("\n## Results\n")
    if not heading:
        sys.exit(f"{page}: no heading '## Results'")
    sections = [
        f"From `{source}`.\n\n{re.sub(r'^#', '###', text, flags=re.MULTILINE)}" for source, text in texts.items()
    ]
    page.write_text(f"{before}{heading}\n" + "\n".join(sections))


def main() -> None:
    sources = [Path(name) for name in sys.argv[1:] if name.endswith(".json")]
    pages = [Path(name) for name in sys.argv[1:] if not name.endswith(".json")]
    texts = {source: report(json.loads(source.read_text())) for source in sources}
    for page in pages:
        put_into(page, texts)
    if not pages:
        print("\n".join(texts.values()), end="")


if __name__ == "__main__":
    main()

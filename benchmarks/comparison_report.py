"""The table of a comparison with llama.cpp, from the single figures that compare_llamacpp.py stored.

    python benchmarks/comparison_report.py benchmarks/results/NAME.json [more.json …] [docs/performance.md]

prints the tables, or puts them into a page in place of what follows its heading "Results".

A cell is the median over rounds (lowest–highest). A ratio is Kumquant to llama.cpp within one round, then the
median (lowest–highest) of those; llama.cpp's setting is the one with the better median of that measure.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from make_models import SHAPES, Shape, tensors

BITS_PER_WEIGHT = 4.5  # 4-bit codes, one 16-bit scale per 32: Q4_0 and q4f16_1 alike

Values = dict[int, float]  # round -> figure


def report(found: dict[str, Any]) -> str:
    machine = found["machine"]
    rounds = 1 + max(measurement["round"] for measurement in found["measurements"])
    lines = [
        f"# Kumquant and llama.cpp, {found['date']}",
        "",
        f"{machine['cpu']} (family {machine['cpu_family']}, model {machine['cpu_model']}), "
        f"{machine['cpus']} CPUs, cache {machine['cache']}, "
        f"Linux {machine['kernel']}. "
        f"Kumquant {found['kumquant_commit']}, {found['quantization']}; llama.cpp: {found['llamacpp']}. "
        f"{rounds} rounds.",
        "",
    ]
    for name in SHAPES:
        for threads in sorted({m["threads"] for m in found["measurements"]}):
            block = [m for m in found["measurements"] if (m["model"], m["threads"]) == (name, threads)]
            if block:
                lines += [f"## {name}, {threads} thread{'s' if threads > 1 else ''}", ""]
                lines += [*table(block, SHAPES[name], threads), ""]
    return "\n".join(lines)


def table(block: list[dict[str, Any]], shape: Shape, threads: int) -> list[str]:
    """Markdown rows for one model at one thread count."""
    speeds = collect(block, lambda run: run["speeds"])
    limits: dict[str, Values] = defaultdict(dict)
    for sample in (m for m in block if "limits" in m):
        for limit in sample["limits"]:
            if limit["threads"] == threads or limit["measure"] == "round trip":
                limits[f"{limit['measure']}, {limit['unit']}"][sample["round"]] = limit["value"]

    lines = [
        "| tokens/s | Kumquant | llama.cpp | setting | ratio | of the limit |",
        "|---|---|---|---|---|---|",
    ]
    for measure in speeds["llama.cpp", "default"]:
        lines.append(row(measure, speeds, share_of_limit(measure, speeds, shape, limits)))
    lines.append(
        row(
            "peak memory, MB",
            collect(block, lambda run: {"peak memory, MB": run["peak_rss_bytes"] / 1e6}),
            "",
            best=min,
        )
    )
    own = [m for m in block if m.get("engine") == "kumquant"]
    for key, what in (("open_s", "open, ms"), ("first_token_s", "open to first token, ms")):
        if own:
            lines.append(f"| {what} | {cell({m['round']: 1e3 * m[key] for m in own})} | | | | |")
    lines += [
        "",
        "Alongside: " + "; ".join(f"{what} {cell(values)}" for what, values in limits.items()) + ".",
    ]
    return lines


def collect(block: list[dict[str, Any]], figures: Any) -> dict[tuple[str, str], dict[str, Values]]:
    """(engine, setting) -> measure -> round -> figure."""
    found: dict[tuple[str, str], dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
    for run in (m for m in block if "engine" in m):
        for measure, value in figures(run).items():
            found[run["engine"], run["setting"]][measure][run["round"]] = value
    return found


def row(measure: str, found: dict[tuple[str, str], dict[str, Values]], share: str, best: Any = max) -> str:
    settings = {setting: values[measure] for (engine, setting), values in found.items() if engine == "llama.cpp"}
    setting = best(settings, key=lambda name: median(settings[name].values()))
    theirs = settings[setting]
    ours = next((values[measure] for (engine, _), values in found.items() if engine == "kumquant"), {})
    ratios = {number: ours[number] / theirs[number] for number in ours if number in theirs}
    ratio = cell(ratios, digits=2) if ratios else "–"
    return f"| {measure} | {cell(ours) if ours else '–'} | {cell(theirs)} | {setting} | {ratio} | {share} |"


def share_of_limit(
    measure: str, speeds: dict[tuple[str, str], dict[str, Values]], shape: Shape, limits: dict[str, Values]
) -> str:
    """Kumquant's share of what the machine could do at that moment, where one limit binds.

    Decode at context 0 reads every weight once a token, from DRAM or, up to 48 MB, from a cache; prefill does
    two int8 operations a weight and token, the head's apart. Attention is not counted.
    """
    ours = next((values[measure] for (engine, _), values in speeds.items() if engine == "kumquant"), None)
    if ours is None:
        return ""
    matrices = {t.name: float(np.prod(t.shape)) for t in tensors(shape) if len(t.shape) == 2}
    embedding = matrices.pop("model.embed_tokens.weight")
    head = matrices.pop("lm_head.weight", embedding)
    if measure.startswith("prefill"):
        work, limit, what = 2 * sum(matrices.values()), limits["int8 dot, GOPS"], "int8"
    elif measure == "decode @0":
        work = (sum(matrices.values()) + head) * BITS_PER_WEIGHT / 8
        size = "43MB" if work < 48e6 else "1GiB"
        limit, what = limits[f"read {size}, GB/s"], f"{size} read"
    else:
        return ""
    shares = [ours[number] * work / (limit[number] * 1e9) for number in ours]
    return f"{100 * median(shares):.0f} % {what}"


def cell(values: Values, digits: int | None = None) -> str:
    """Median (lowest–highest), with so many decimals, or one below 100 and none from there on."""

    if digits is None:
        digits = 0 if median(values.values()) >= 100 else 1
    ordered = sorted(values.values())
    middle, low, high = median(ordered), ordered[0], ordered[-1]
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

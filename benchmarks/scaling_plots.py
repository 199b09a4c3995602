"""Plots of a file that scaling.py wrote, and the page's section about them.

    python benchmarks/scaling_plots.py benchmarks/results/scaling-DATE.json [docs/performance.md]

Needs matplotlib. Draws docs/figures/scaling-*.svg; with a page, puts the section "Scaling" into it, before "Results".
Lines go through the medians of the rounds, bars show their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "kumquant"  # the same numbers give the same file
from matplotlib import pyplot as plt  # noqa: E402  # the backend is chosen before

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
HEADING, NEXT_HEADING = "## Scaling", "## Results"
Rows = list[dict[str, Any]]


def part(found: dict[str, Any], name: str) -> dict[str, Rows]:
    """Rows of a part by label, in the file's order."""
    return {key.split("/", 1)[1]: point["rows"] for key, point in found["points"].items()
            if key.startswith(f"{name}/")}


def median(values: list[float]) -> float:
    return statistics.median(values)


def line(axes: Any, x: list[float], rounds: list[list[float]], label: str) -> None:
    """Medians as a line, the range of the rounds as bars."""
    middle = [median(one) for one in rounds]
    below = [mid - min(one) for mid, one in zip(middle, rounds)]
    above = [max(one) - mid for mid, one in zip(middle, rounds)]
    axes.errorbar(x, middle, yerr=[below, above], marker="o", markersize=3, capsize=2, linewidth=1.2, label=label)


def finish(axes: Any, title: str, x_label: str, y_label: str, x_ticks: list[float] | None = None) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if x_ticks is not None:
        least = min(tick for tick in x_ticks if tick > 0)
        axes.set_xscale("symlog", base=2, linthresh=least)  # logarithmic, and with a place for 0
        axes.set_xlim(left=x_ticks[0] - least / 8)
        axes.minorticks_off()
        axes.set_xticks(x_ticks, [short(tick) for tick in x_ticks])
    axes.legend(fontsize=8)


def short(number: float) -> str:
    return f"{number / 1024:g}k" if number >= 1024 else f"{number:g}"


def save(figure: Any, name: str) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(FIGURES / f"scaling-{name}.svg", metadata={"Date": None})
    plt.close(figure)


def plot_context(models: dict[str, Rows]) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    ticks = sorted({row["context"] for rows in models.values() for row in rows})
    for name, rows in models.items():
        contexts = [row["context"] for row in rows]
        line(axes[0], contexts, [relative(row["decode"], rows[0]["decode"]) for row in rows], name)
        line(axes[1], contexts, [relative(row["prefill"], rows[0]["prefill"]) for row in rows], name)
        line(axes[2], contexts, [[row["rss_bytes"] / 1e6] for row in rows], name)
    finish(axes[0], "decode", "tokens in the context", "of the speed at 0", ticks)
    finish(axes[1], "prefill, 512 tokens more", "tokens in the context", "of the speed at 0", ticks)
    finish(axes[2], "resident memory", "tokens in the context", "MB", ticks)
    save(figure, "context")
    rows = [[name, short(row["context"]), rate(row["decode"]), rate(row["prefill"]), megabytes(row["rss_bytes"])]
            for name, model in models.items() for row in model]
    return table(["model", "context", "decode", "prefill 512", "resident, MB"], rows)


def relative(rounds: list[float], base: list[float]) -> list[float]:
    return [one / median(base) for one in rounds]


def plot_batch(models: dict[str, Rows]) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    ticks = sorted({row["batch"] for rows in models.values() for row in rows})
    for name, rows in models.items():
        batches = [row["batch"] for row in rows]
        line(axes[0], batches, [relative(row["decode"], rows[0]["decode"]) for row in rows], name)
        line(axes[1], batches, [[row["rss_bytes"] / 1e6] for row in rows], name)
    finish(axes[0], "decode, all sequences together", "sequences", "times the speed of one", ticks)
    finish(axes[1], "resident memory", "sequences", "MB", ticks)
    save(figure, "batch")
    rows = [[name, f"{row['batch']}", rate(row["decode"]), f"{median(row['decode']) / row['batch']:,.1f}",
             megabytes(row["rss_bytes"])] for name, model in models.items() for row in model]
    return table(["model", "sequences", "decode, all", "of each", "resident, MB"], rows)


def plot_basics(points: dict[str, Rows], name: str, x_label: str, x_of: Callable[[dict[str, Any]], float]) -> str:
    """Milliseconds of a decoded token and of 512 prompt tokens, and memory, against a size."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    ordered = sorted(((x_of(rows[0]), label, rows[0]) for label, rows in points.items()), key=lambda one: one[0])
    x = [one[0] for one in ordered]
    line(axes[0], x, [[1e3 / speed for speed in one[2]["decode"]] for one in ordered], "empty context")
    line(axes[0], x, [[1e3 / speed for speed in one[2]["decode_512"]] for one in ordered], "after 512 tokens")
    line(axes[1], x, [[512e3 / speed for speed in one[2]["prefill"]] for one in ordered], "512 tokens")
    line(axes[2], x, [[one[2]["rss_bytes"] / 1e6] for one in ordered], "resident")
    line(axes[2], x, [[one[2]["weights_bytes"] / 1e6] for one in ordered], "weights, file")
    finish(axes[0], "a decoded token", x_label, "ms")
    finish(axes[1], "prefill", x_label, "ms")
    finish(axes[2], "memory", x_label, "MB")
    save(figure, name)
    rows = [[label, megabytes(row["weights_bytes"]), rate(row["decode"]), rate(row["decode_512"]),
             rate(row["decode_batch_8"]), rate(row["prefill"]), f"{read_rate(row):.1f}", megabytes(row["rss_bytes"])]
            for _, label, row in ordered]
    head = [name, "file, MB", "decode @0", "decode @512", "8 together", "prefill 512", "read, GB/s", "resident, MB"]
    return table(head, rows)


def read_rate(row: dict[str, Any]) -> float:
    """GB/s of weights that decoding one sequence from an empty context reads."""
    return row["read_bytes_per_token"] * median(row["decode"]) / 1e9


def isa_table(points: dict[str, Rows]) -> str:
    measures = ("decode", "decode_512", "decode_batch_8", "prefill")
    rows = [[f"`{label}`", *(rate(row[one]) for one in measures)] for label, (row,) in points.items()]
    return table(["`KUMQUANT_ISA`", "decode @0", "decode @512", "8 together", "prefill 512"], rows)


def rate(rounds: list[float]) -> str:
    """Tokens per second: median (range)."""
    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"

    return f"{number(median(rounds))} ({number(min(rounds))}–{number(max(rounds))})"


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def section(found: dict[str, Any], source: str) -> str:
    """Draws every part that the file has, and describes it."""
    point = next(iter(found["points"].values()))
    here = found["machine"]
    text = [HEADING, (
        f"From `{source}`, written by `benchmarks/scaling.py` on {here['cpu']} (family {here['cpu_family']}, model "
        f"{here['cpu_model']}), {here['cpus']} CPUs, {point['threads']} threads, {point['date']}, commit "
        f"{point['commit']}; drawn by `benchmarks/scaling_plots.py`. "
        f"Tokens per second, median and range of the rounds; random weights, {found['quantization']}."
    )]
    plots: list[tuple[str, str, Callable[[dict[str, Rows]], str]]] = [
        ("context", "Context", plot_context),
        ("batch", "Batch: sequences that decode together", plot_batch),
        ("vocabulary", "Vocabulary, the rest as in S",
         lambda points: plot_basics(points, "vocabulary", "entries, thousands", lambda row: row["vocab_size"] / 1e3)),
        ("size", "Model size, in the shapes of published models",
         lambda points: plot_basics(points, "size", "MB of weights", lambda row: row["weights_bytes"] / 1e6)),
    ]
    for name, title, plot in plots:
        if points := part(found, name):
            text += [f"### {title}", f"![{title}](figures/scaling-{name}.svg)", plot(points)]
    if points := part(found, "isa"):
        text += ["### Forced instruction sets", "S; the results are the same bits on each of them.", isa_table(points)]
    return "\n\n".join(text) + "\n"


def put_into(page: Path, text: str) -> None:
    """In place of the page's section, or before the results where it has none yet."""
    before = page.read_text()
    if f"\n{HEADING}\n" in before:
        before, _, after = before.partition(f"\n{HEADING}\n")
        after = after[after.find("\n## "):] if "\n## " in after else ""
    else:
        before, found, after = before.partition(f"\n{NEXT_HEADING}\n")
        after = found + after
    page.write_text(f"{before.rstrip()}\n\n{text}{after}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("file", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    options = parser.parse_args()
    text = section(json.loads(options.file.read_text()), f"benchmarks/results/{options.file.name}")
    if options.page is None:
        print(text)
    else:
        put_into(options.page, text)


if __name__ == "__main__":
    main()

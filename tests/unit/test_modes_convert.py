"""Several modes from one pass over a checkpoint, transposed layouts, and what no mode has a place for."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, tiny_llama

from kumquant.checkpoint import Checkpoint, open_checkpoint
from kumquant.cli import main
from kumquant.convert import conversion as conversion_module
from kumquant.convert import convert
from kumquant.convert import job as job_module
from kumquant.convert import stream as stream_module
from kumquant.convert.journal import JOURNAL_NAME
from kumquant.convert.order import plan_tensors
from kumquant.errors import RequestError, UnsupportedError
from kumquant.models import CacheTensor, family_of, is_quantized, records_of
from kumquant.schemes import SCHEMES
from kumquant.tensor_cache import StoredTensors, verify

MODES = ["q4f16_1", "q3f16_0", "q0f32", "q8bf16_1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Interrupted(BaseException):
    pass


class InterruptAfter:
    """A progress that raises after so many bytes, as Ctrl-C would."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes

    def start(self, total_bytes: int, what: str) -> None:
        self.total = total_bytes

    def advance(self, n: int, note: str = "") -> None:
        self.left -= n
        if self.left < 0:
            raise Interrupted

    def finish(self) -> None:
        pass


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards and many blocks for tiny models."""
    monkeypatch.setattr(job_module, "plan_shards", partial(job_module.plan_shards, shard_cap=4096))
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 1000)


# ---- several modes


@pytest.mark.usefixtures("small_shards")
def test_several_modes_are_what_each_is_alone(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    progress = InterruptAfter(10**9)
    reports = convert(source, tmp_path / "out", MODES, progress=progress)
    assert [(report.quantization, report.out) for report in reports] == [(m, tmp_path / "out" / m) for m in MODES]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(MODES)
    assert progress.total == sum(report.source_bytes for report in reports) == 10**9 - progress.left
    for mode in MODES:
        convert(source, tmp_path / mode, mode)
        assert contents(tmp_path / "out" / mode) == contents(tmp_path / mode), mode


@pytest.mark.usefixtures("small_shards")
def test_the_source_is_passed_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_llama(tmp_path / "source")
    opened = open_checkpoint(source)
    reads: list[str] = []
    read_rows = type(opened).read_rows

    def counted_read(self: Checkpoint, name: str, *place: int) -> np.ndarray:
        reads.append(name)
        return read_rows(self, name, *place)

    monkeypatch.setattr(type(opened), "read_rows", counted_read)
    # Measuring the loss looks at a few rows again.
    monkeypatch.setattr(sys.modules["kumquant.convert.conversion"], "measure", lambda *_: ())
    convert(source, tmp_path / "out", ["q4f16_1", "q4f32_1"], threads=1)
    owner = {name: planned.tensor.name
             for planned in plan_tensors(plan_of(TINY_LLAMA), opened, SCHEMES["q4f16_1"])
             for name in planned.tensor.sources}
    tensors = [name for name, _ in groupby(owner[name] for name in reads)]
    assert len(tensors) == len(set(tensors)), "a tensor was come back to"


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("percent", [2, 40, 95])
def test_several_modes_go_on_after_an_interruption(tmp_path: Path, percent: int) -> None:
    source = tiny_llama(tmp_path / "source")
    whole = convert(source, tmp_path / "whole", MODES)
    nbytes = sum(report.source_bytes for report in whole) * percent // 100
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", MODES, progress=InterruptAfter(nbytes))
    finished = []
    for mode in MODES:
        left = contents(tmp_path / "out" / mode)
        assert not any("cache" in name or "partial" in name for name in left)
        finished.append(len(json.loads(left[JOURNAL_NAME])["shards"]))
    again = convert(source, tmp_path / "out", MODES)
    assert [report.resumed_shards for report in again] == finished and (any(finished) or percent < 90)
    for mode in MODES:
        assert contents(tmp_path / "out" / mode) == contents(tmp_path / "whole" / mode)


def test_a_failure_between_two_manifests_is_made_good_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama(tmp_path / "source")
    copy_small_files = conversion_module.copy_small_files

    def fail_for_second(checkpoint: Checkpoint, out: Path, warnings: list[str]) -> None:
        if out.name == "q0f16":
            raise Interrupted
        copy_small_files(checkpoint, out, warnings)

    monkeypatch.setattr(conversion_module, "copy_small_files", fail_for_second)
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", ["q4f16_1", "q0f16"])
    assert (tmp_path / "out" / "q4f16_1" / "tensor-cache.json").exists()
    monkeypatch.undo()
    convert(source, tmp_path / "out", ["q4f16_1", "q0f16"])
    for mode in ("q4f16_1", "q0f16"):
        verify(tmp_path / "out" / mode)
        assert JOURNAL_NAME not in contents(tmp_path / "out" / mode)


def test_a_list_of_one_mode_is_a_list(tmp_path: Path) -> None:
    [report] = convert(tiny_llama(tmp_path / "source"), tmp_path / "out", ["q0f16"])
    assert report.out == tmp_path / "out" / "q0f16" and verify(report.out).tensors == report.records


def test_what_several_modes_refuse(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    out = tmp_path / "out"
    for modes in ([], ["q0f16", "q0f16"]):
        with pytest.raises(RequestError, match="every mode once"):
            convert(source, out, modes)
    with pytest.raises(UnsupportedError, match="q9f16_1"):
        convert(source, out, ["q0f16", "q9f16_1"])
    assert not out.exists()
    convert(source, out, ["q0f16"])
    before = contents(out / "q0f16")
    with pytest.raises(RequestError, match=r"q0f16: holds a finished cache"):
        convert(source, out, ["q4f16_1", "q0f16"])
    assert contents(out / "q0f16") == before and [path.name for path in out.iterdir()] == ["q0f16"]
    convert(source, out, ["q4f16_1", "q0f16"], force=True)
    assert contents(out / "q0f16") == before


def test_the_command_line_takes_several_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_llama(tmp_path / "source")
    command = ["convert", str(source), "--quiet"]
    assert main([*command, "-q", "q4f16_1", "-q", "q4f32_1", "-o", str(tmp_path / "two"), "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [Path(one["out"]) for one in documents] == [tmp_path / "two" / "q4f16_1", tmp_path / "two" / "q4f32_1"]
    assert main([*command, "-q", "q4f32_1", "-o", str(tmp_path / "one")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two" / "q4f32_1")
    assert main([*command, "-o", str(tmp_path / "default")]) == 0
    assert contents(tmp_path / "default") == contents(tmp_path / "two" / "q4f16_1")


# ---- layouts and what is quantized


@pytest.mark.usefixtures("small_shards")
def test_a_transposed_cache_holds_the_same_weights(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    kept, turned = convert(source, tmp_path / "out", ["q4f16_1", "q4f16_0"])
    kept_cache, turned_cache = StoredTensors.open(kept.out), StoredTensors.open(turned.out)
    assert list(kept_cache) != list(turned_cache) or kept.cache_bytes == turned.cache_bytes
    for name, array in kept_cache.items():
        is_turned = name.endswith((".q_weight", ".q_scale")) and "embed" not in name
        assert np.array_equal(turned_cache[name], array.T if is_turned else array), name


def plan_of(config: dict[str, object]) -> list[CacheTensor]:
    family = family_of(config)
    return family.plan(family.config(config))


def tensor(kind: str, name: str, *shape: int) -> CacheTensor:
    return CacheTensor(name, kind, shape, ("x",), (shape,))  # type: ignore[arg-type]


@pytest.mark.parametrize("name, shape, kind, quantized", [
    ("model.layers.0.mlp.gate.weight", (8, 64), "router", False),
    ("model.layers.0.mlp.gate.weight", (256, 64), "router", False),
    ("model.layers.0.mlp.gate.weight", (257, 64), "router", True),
    ("model.layers.0.mlp.gate.weight", (8, 64), "linear", False),
    ("model.layers.0.mlp.gate_proj.weight", (8, 64), "linear", True),
    ("model.norm.weight", (64,), "plain", False),
    ("model.layers.0.moe.e2.weight", (4, 64, 64), "experts", True),
])
def test_routers_of_up_to_256_outputs_stay_plain(name: str, shape: tuple[int, ...], kind: str, quantized: bool) -> None:
    assert is_quantized(tensor(kind, name, *shape), SCHEMES["q4f16_1"]) == quantized
    assert not is_quantized(tensor(kind, name, *shape), SCHEMES["q0f16"])


@pytest.mark.parametrize("name, kind, is_end", [
    ("lm_head.weight", "linear", True), ("embed_out.weight", "linear", True), ("lm_head.linear.weight", "linear", True),
    ("head.weight", "linear", True), ("transformer.wpe.weight", "embedding", True), ("output.weight", "linear", False),
    ("transformer.output_layer.weight", "linear", False), ("model.head.weight", "linear", False),
])
def test_what_counts_as_an_end_goes_by_name(name: str, kind: str, is_end: bool) -> None:
    assert is_quantized(tensor(kind, name, 300, 64), SCHEMES["q4f16_2"]) != is_end
    assert is_quantized(tensor(kind, name, 300, 64), SCHEMES["q4f16_1"])


@pytest.mark.parametrize("mode", ["q3f16_0", "q4f16_0", "q4bf16_0", "q4f16_autoawq"])
def test_transposed_layouts_have_no_place_for_experts(mode: str) -> None:
    with pytest.raises(UnsupportedError, match=f"the mode {mode} has no place for stacked experts"):
        records_of(tensor("experts", "model.layers.0.moe.e2.weight", 4, 64, 64), SCHEMES[mode])


@pytest.mark.parametrize("mode", ["e4m3_e4m3_f16", "fp8_e4m3fn_bf16_block_scale", "q4f16_ft"])
def test_modes_that_are_not_written_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{mode}: this mode"):
        convert(tiny_llama(tmp_path / "source"), tmp_path / "out", mode)
    assert not (tmp_path / "out").exists()

"""convert: what it writes, what it refuses, and that an interrupted conversion loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, tiny_llama, write_checkpoint

from kumquant.checkpoint import open_checkpoint
from kumquant.convert import convert
from kumquant.convert import job as job_module
from kumquant.convert import stream as stream_module
from kumquant.convert.journal import JOURNAL_NAME, locked
from kumquant.convert.order import count_loaded_values, emission_order
from kumquant.errors import CapacityError, CheckpointError, Error, RequestError, UnsupportedError
from kumquant.models import CacheTensor
from kumquant.quant import reference
from kumquant.schemes import SCHEMES
from kumquant.tensor_cache import StoredTensors, verify

SMALL_SHARDS = 4096


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Interrupted(BaseException):
    pass


class InterruptAfter:
    """A progress that raises after so many bytes, as Ctrl-C would."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes
        self.calls: list[tuple[str, int]] = []

    def start(self, total_bytes: int, what: str) -> None:
        self.calls.append((what, total_bytes))

    def advance(self, n: int, note: str = "") -> None:
        self.left -= n
        if self.left < 0:
            raise Interrupted

    def finish(self) -> None:
        self.calls.append(("finish", self.left))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards and many blocks for tiny models."""
    plan = partial(job_module.plan_shards, shard_cap=SMALL_SHARDS)
    monkeypatch.setattr(job_module, "plan_shards", plan)
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 1000)


# ---- what is written


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("mode", ["q4f16_1", "q4f32_1", "q0bf16"])
def test_a_cache_holds_what_the_twin_says(tmp_path: Path, dtype: Any, mode: str) -> None:
    tensors = random_tensors(llama_shapes(TINY_LLAMA), dtype)
    source = write_checkpoint(tmp_path / "source", tensors)
    report = convert(source, tmp_path / "out", mode)
    scheme = SCHEMES[mode]
    cache = StoredTensors.open(tmp_path / "out")
    fused = np.concatenate([tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"])
    name = "model.layers.1.self_attn.qkv_proj"
    if scheme.is_quantized:
        codes, scales = reference.quantize(fused, scheme)
        assert np.array_equal(cache[name + ".q_weight"], codes)
        stored = scales.astype(ml_dtypes.bfloat16) if mode == "q4f32_1" else scales
        assert cache[name + ".q_scale"].tobytes() == stored.tobytes()
    else:
        assert cache[name + ".weight"].tobytes() == reference.cast(fused, scheme.model_dtype).tobytes()
    assert verify(tmp_path / "out").tensors == report.records
    assert report.source_bytes == sum(array.nbytes for array in tensors.values())
    assert report.cache_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("params_*"))
    assert report.warnings and "tokenizer" in report.warnings[0]
    assert not list((tmp_path / "out").glob(".*")) and not list((tmp_path / "out").glob("*.partial"))


def test_threads_blocks_and_files_do_not_change_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama(tmp_path / "source")
    convert(source, tmp_path / "one", threads=1)
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 200)
    convert(source, tmp_path / "many", threads=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_legacy_names_have_the_same_bytes(tmp_path: Path) -> None:
    convert(tiny_llama(tmp_path / "source"), tmp_path / "out", "q4f32_1", legacy_names=True)
    files = contents(tmp_path / "out")
    assert files["ndarray-cache.json"] == files["tensor-cache.json"]
    assert files["ndarray-cache-b16.json"] == files["tensor-cache-b16.json"]


def test_small_files_are_copied(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    copied = {"generation_config.json": "{}", "special_tokens_map.json": "{}",
              "chat_template.jinja": "{{ x }}"}
    for name, text in {**copied, "README.md": "no", "optimizer.bin": "no"}.items():
        (source / name).write_text(text)
    convert(source, tmp_path / "out")
    files = contents(tmp_path / "out")
    assert {name: files[name].decode() for name in copied} == copied
    assert files["config.json"] == (source / "config.json").read_bytes()
    assert "README.md" not in files and "optimizer.bin" not in files


def test_progress_counts_every_source_byte(tmp_path: Path) -> None:
    progress = InterruptAfter(10**9)
    report = convert(tiny_llama(tmp_path / "source"), tmp_path / "out", progress=progress)
    assert progress.calls == [("convert", report.source_bytes), ("finish", 10**9 - report.source_bytes)]


# ---- order and counting


def tensor(name: str, *sources: str, is_head: bool = False) -> CacheTensor:
    return CacheTensor(name, "linear", (len(sources), 1), sources, ((1, 1),) * len(sources), is_head)


def test_a_fused_tensor_stands_where_its_first_source_does() -> None:
    plan = [tensor("embed", "e"), tensor("qkv", "q", "k", "v"), tensor("o", "o"),
            tensor("head", "e", is_head=True)]
    names = [planned.name for planned in emission_order(plan, ["unused", "k", "o", "q", "e", "v"])]
    assert names == ["qkv", "o", "head", "embed"]


def test_files_loaded_twice_count_twice(tmp_path: Path) -> None:
    shapes = {"a": (10, 1), "b": (1, 1), "c": (100, 1), "d": (1000, 1), "skip": (7, 1)}
    names = list(shapes)
    source = write_checkpoint(tmp_path / "indexed", random_tensors(shapes), num_files=2)
    checkpoint = open_checkpoint(source)  # file 1: a, c, skip; file 2: b, d
    in_order = [tensor("x", "a"), tensor("y", "b"), tensor("z", "c")]
    assert count_loaded_values(in_order, checkpoint, lambda name: name == "skip") == 110 + 1001 + 110
    together = [tensor("x", "a"), tensor("y", "b", "a"), tensor("z", "c")]
    assert count_loaded_values(together, checkpoint, lambda name: False) == 117 + 1001
    assert count_loaded_values([tensor("x", "a")], checkpoint, lambda name: False) == 117
    single = open_checkpoint(write_checkpoint(tmp_path / "single", random_tensors(shapes)))
    assert list(single.tensors) == names
    assert count_loaded_values([tensor("x", "a")], single, lambda name: name == "skip") == 1111


# ---- interrupted and resumed


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("mode", ["q4f16_1", "q0f32"])
@pytest.mark.parametrize("percent", [3, 30, 60, 95])
def test_an_interrupted_conversion_goes_on_and_ends_alike(tmp_path: Path, mode: str, percent: int) -> None:
    source = tiny_llama(tmp_path / "source")
    whole = convert(source, tmp_path / "whole", mode)
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        convert(source, out, mode, progress=InterruptAfter(whole.source_bytes * percent // 100))
    left = contents(out)
    assert JOURNAL_NAME in left and not any("cache" in name or "partial" in name for name in left)
    finished = [shard["data_path"] for shard in json.loads(left[JOURNAL_NAME])["shards"]]
    assert set(finished) <= left.keys()
    report = convert(source, out, mode)
    assert report.resumed_shards == len(finished) and report.shards >= 10
    assert finished or percent < 90
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_scales_are_made_again_when_only_the_codes_are_finished(tmp_path: Path) -> None:
    # lm_head's codes fill a shard of their own, its scales stay pending for a later one.
    source = tiny_llama(tmp_path / "source", vocab_size=800)
    convert(source, tmp_path / "whole")
    first = json.loads((tmp_path / "whole" / "tensor-cache.json").read_text())["records"][0]
    assert [record["name"] for record in first["records"]] == ["lm_head.q_weight"]
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", progress=InterruptAfter(0))
    shutil.copy(tmp_path / "whole" / "params_shard_0.bin", tmp_path / "out")
    journal = json.loads((tmp_path / "out" / JOURNAL_NAME).read_text())
    journal["shards"] = [{"data_path": first["dataPath"], "nbytes": first["nbytes"],
                          "md5sum": first["md5sum"]}]
    (tmp_path / "out" / JOURNAL_NAME).write_text(json.dumps(journal))
    assert convert(source, tmp_path / "out").resumed_shards == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_finished_shard_is_made_again(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    whole = convert(source, tmp_path / "whole")
    with pytest.raises(Interrupted):
        convert(source, tmp_path / "out", progress=InterruptAfter(whole.source_bytes * 9 // 10))
    shard = tmp_path / "out" / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
from functools import partial
from kumquant.convert import convert, job, stream
job.plan_shards = partial(job.plan_shards, shard_cap=4096)
stream.BLOCK_BYTES = 1000
class Kill:
    left = int(sys.argv[3])
    def start(self, total_bytes, what): pass
    def advance(self, n, note=""):
        self.left -= n
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def finish(self): pass
convert(sys.argv[1], sys.argv[2], progress=Kill())
"""


@pytest.mark.usefixtures("small_shards")
def test_a_killed_conversion_goes_on_and_ends_alike(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    whole = convert(source, tmp_path / "whole")
    nbytes = str(whole.source_bytes * 95 // 100)
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out"), nbytes]
    run = subprocess.run(command, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not list((tmp_path / "out").glob("*cache*"))
    assert convert(source, tmp_path / "out").resumed_shards > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_only_the_same_conversion_goes_on(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        convert(source, out, progress=InterruptAfter(30_000))
    before = contents(out)

    def refused(match: str, source: Path = source, mode: str = "q4f16_1") -> None:
        with pytest.raises(RequestError, match=match) as caught:
            convert(source, out, mode)
        assert "--force" in str(caught.value) and contents(out) == before

    refused("other options; found quantization 'q4f16_1', expected 'q4f32_1'", mode="q4f32_1")
    refused("another source; found", source=Path(shutil.copytree(source, tmp_path / "copy")))
    config = source / "config.json"
    original = config.read_bytes()
    config.write_text(json.dumps({**json.loads(original), "rms_norm_eps": 1e-6}))
    refused(r"another config\.json")
    config.write_bytes(original)
    weights = source / "model.safetensors"
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    refused("weights have changed since")
    (out / JOURNAL_NAME).write_text("{")
    with pytest.raises(Error, match=r"(?s)damaged: not JSON.*--force"):
        convert(source, out)
    convert(source, out, force=True)
    convert(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


# ---- weights that are no numbers


@pytest.mark.parametrize("mode", ["q4f16_1", "q4f16_0", "q4f32_1", "q0f16", "q0bf16", "q0f32"])
def test_infinities_and_nan_are_kept_and_said(tmp_path: Path, mode: str) -> None:
    tensors = random_tensors(llama_shapes(TINY_LLAMA))
    source = write_checkpoint(tmp_path / "source", tensors, TINY_LLAMA)
    assert not any("NaN" in warning for warning in convert(source, tmp_path / "whole", mode).warnings)
    for name, value in (("model.norm.weight", np.nan), ("model.layers.1.mlp.down_proj.weight", -np.inf),
                        ("model.layers.0.self_attn.o_proj.weight", np.inf)):
        tensors[name].flat[5] = value
    broken = write_checkpoint(tmp_path / "broken", tensors, TINY_LLAMA)
    said = [warning for warning in convert(broken, tmp_path / "out", mode).warnings if "NaN" in warning]
    assert len(said) == 1 and "weights of model.layers.0.self_attn.o_proj.weight and 2 more" in said[0]


# ---- the output folder


def test_a_finished_cache_is_replaced_only_by_force(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    out = tmp_path / "out"
    (source / "merges.txt").write_text("")
    convert(source, out, "q4f32_1")
    (source / "merges.txt").unlink()
    (out / "notes.txt").write_text("mine")
    (out / "params_shard_7.bin").write_text("left over")
    before = contents(out)
    with pytest.raises(RequestError, match="holds a finished cache"):
        convert(source, out)
    assert contents(out) == before
    convert(source, out, force=True)
    convert(source, tmp_path / "fresh")
    assert contents(out) == {**contents(tmp_path / "fresh"), "notes.txt": b"mine"}


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")
    with pytest.raises(RequestError, match="same folder"):
        convert(source, source)
    other = tiny_llama(tmp_path / "other")
    with pytest.raises(RequestError, match="holds a checkpoint"):
        convert(source, other, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        convert(source, tmp_path / "file")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "params_shard_0.bin").write_bytes(b"someone's")
    with pytest.raises(RequestError, match=r"would overwrite; found params_shard_0\.bin"):
        convert(source, shards)
    assert contents(shards) == {"params_shard_0.bin": b"someone's"}


def test_one_conversion_at_a_time(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    with locked(out), pytest.raises(RequestError, match="another conversion into this folder is running"):
        convert(source, out)
    assert contents(out) == {}
    convert(source, out)


def test_a_full_disk_is_noticed_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_llama(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(CapacityError, match="not enough space"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_leaves_no_cache(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source")

    class Touch(InterruptAfter):
        def finish(self) -> None:
            os.utime(source / "model.safetensors", ns=(0, 0))

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        convert(source, tmp_path / "out", progress=Touch(10**9))
    assert not list((tmp_path / "out").glob("*cache*"))


# ---- bad input


def changed(tensors: dict[str, np.ndarray], **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    merged = {**tensors, **{name.replace("__", "."): array for name, array in changes.items()}}
    return {name: array for name, array in merged.items() if array is not None}


BAD_SOURCES = [
    ({"lm_head__weight": None}, CheckpointError, r"a llama model needs are missing: lm_head\.weight"),
    ({"model__norm__weight": np.ones(47, np.float16)}, CheckpointError,
     r"model\.norm\.weight has another shape than config\.json says; found \[47\]; expected \[48\]"),
    ({"model__layers__0__self_attn__q_norm__weight": np.ones(16, np.float16)}, CheckpointError,
     r"no place for these tensors: model\.layers\.0\.self_attn\.q_norm\.weight"),
    ({"model__norm__weight": np.ones(48, np.int64)}, UnsupportedError, "weights cannot have; found I64"),
    ({"model__layers__0__self_attn__q_proj__weight": np.ones((48, 48), ml_dtypes.bfloat16)}, UnsupportedError,
     "would be fused from float16 and bfloat16"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_SOURCES)
def test_checkpoints_that_do_not_fit_their_family(
    tmp_path: Path, changes: dict[str, Any], error: type[Error], message: str
) -> None:
    tensors = changed(random_tensors(llama_shapes(TINY_LLAMA)), **changes)
    source = write_checkpoint(tmp_path / "source", tensors)
    with pytest.raises(error, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_known_leftovers_are_passed_over(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes(TINY_LLAMA))
    source = write_checkpoint(tmp_path / "source", tensors)
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    with_leftovers = write_checkpoint(tmp_path / "more", {**tensors, **inv_freq})
    convert(source, tmp_path / "plain")
    convert(with_leftovers, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_float32_beside_sixteen_bits_is_widened(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes(TINY_LLAMA))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float32) * np.float32(1.001)
    convert(write_checkpoint(tmp_path / "source", tensors), tmp_path / "out", "q0f32")
    gate = tensors["model.layers.0.mlp.gate_proj.weight"].astype(np.float32)
    stored = StoredTensors.open(tmp_path / "out")["model.layers.0.mlp.gate_up_proj.weight"]
    expected = np.concatenate([gate, tensors[name]]).astype(ml_dtypes.bfloat16)
    assert stored.tobytes() == expected.tobytes()


def test_arguments_that_cannot_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = tiny_llama(tmp_path / "source")
    with pytest.raises(UnsupportedError, match="unknown quantization mode"):
        convert(source, tmp_path / "out", "q5_k_m")
    with pytest.raises(RequestError, match="threads: value out of range; found 0"):
        convert(source, tmp_path / "out", threads=0)
    with pytest.raises(CheckpointError, match="not downloaded yet"):
        convert("org/no-such-model", tmp_path / "out")
    unknown = tiny_llama(tmp_path / "unknown", model_type="t5")
    with pytest.raises(UnsupportedError, match="unknown model family"):
        convert(unknown, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- memory

MEASURED = """
import re, sys
from pathlib import Path
from kumquant.convert import convert
# Not ru_maxrss: that also remembers the process which started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
convert(sys.argv[1], sys.argv[2], sys.argv[3], threads=2)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="skipped: reads /proc")
@pytest.mark.parametrize("mode", ["q4f32_1", "q0f32"])
def test_memory_stays_below_the_largest_tensor(tmp_path: Path, mode: str) -> None:
    """Stated bound on two threads: 48 MiB and an eighth of the largest fused tensor, which has 64 MiB here."""
    config = {**TINY_LLAMA, "hidden_size": 2048, "vocab_size": 16_384, "intermediate_size": 4096,
              "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128, "num_hidden_layers": 1}
    shapes = llama_shapes(config)
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    assert offset > 200 << 20
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)  # zeros that take no space on the disk
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(tmp_path / "out"), mode]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    largest = 2 * 16_384 * 2048
    assert int(run.stdout) * 1024 < (48 << 20) + largest / 8


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_small_files_that_are_damaged_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    source = tiny_llama(tmp_path / "source")
    (source / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Panels files: the same bits from a file as from the cache; whatever is wrong with the file, the cache is used."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from test_modes_awq import checkpoint as awq_checkpoint
from test_native_runtime import MODELS

from kumquant import LLM, CapacityError, Error, TensorCache, TensorCacheError, _native, convert, pack
from kumquant.cli import main
from kumquant.files import temporary_name
from kumquant.runtime import Model, panels, panels_writer, remove_panels, verify_panels
from kumquant.runtime.panels import HEADER_BYTES, PANELS_NAME, PanelsHeader, panels_paths
from kumquant.schemes import SCHEMES

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 101, 40)]
RUNNABLE = [name for name, scheme in SCHEMES.items() if scheme.can_run and scheme.can_convert]


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KUMQUANT_CACHE", str(tmp_path / "user-cache"))


@pytest.fixture
def folder(tmp_path):
    convert(tiny_llama(tmp_path / "source"), tmp_path / "cache", "q4f16_1")
    return tmp_path / "cache"


@pytest.fixture(params=["copied", "mapped"])
def way(request, monkeypatch):
    """How the file gets into memory."""
    if request.param == "mapped":
        map_always(monkeypatch)
    return request.param


def map_always(monkeypatch):
    """Small files are copied, and what does not come in huge pages, unless told otherwise."""
    monkeypatch.setattr(panels, "COPIED_BYTES", 0)
    monkeypatch.setattr(panels, "huge_mapped_bytes", lambda: None)


def open_model(folder: Path, **options) -> Model:
    return Model(TensorCache.open(folder), threads=2, **options)


def logits(model: Model) -> bytes:
    return model.logits(TOKENS).tobytes()


def assert_falls_back(folder: Path, caplog, why: str) -> None:
    caplog.clear()
    model = open_model(folder)
    assert model.panels_path is None
    assert logits(model) == logits(open_model(folder, panels=False))
    (record,) = [record for record in caplog.records if record.name.startswith("kumquant")]
    assert why in record.getMessage() and f"kumquant pack {folder}" in record.getMessage()
    assert "\n" not in record.getMessage()


def rewrite(path: Path, change) -> None:
    """Replace a file by itself, changed: change(bytearray) -> bytes-like or None for in place."""
    data = bytearray(path.read_bytes())
    changed = change(data)
    path.unlink()
    path.write_bytes(data if changed is None else changed)


@pytest.mark.parametrize(("mode", "tied"), [*((mode, False) for mode in RUNNABLE), ("q4f16_1", True), ("q0f32", True)])
def test_the_same_bits_in_every_mode(mode, tied, tmp_path, monkeypatch, caplog):
    source = tmp_path / "source"
    if mode == "q4f16_autoawq":
        awq_checkpoint(source)
    else:
        tiny_llama(source, tie_word_embeddings=tied)
    convert(source, tmp_path / "cache", mode)
    report = pack(tmp_path / "cache", threads=2)
    assert report.is_new and report.path == tmp_path / "cache" / PANELS_NAME
    assert report.nbytes == report.path.stat().st_size
    plain = open_model(tmp_path / "cache", panels=False)
    assert plain.panels_path is None
    for is_mapped in (False, True):
        if is_mapped:
            map_always(monkeypatch)
        model = open_model(tmp_path / "cache")
        assert model.panels_path == report.path and not caplog.records
        for activations in ("int8", "float32"):
            assert model.logits(TOKENS, activations).tobytes() == plain.logits(TOKENS, activations).tobytes()


@pytest.mark.parametrize("isa", _native.isa_list())
def test_one_file_for_every_instruction_set(folder, isa):
    pack(folder)
    first = folder.joinpath(PANELS_NAME).read_bytes()
    model = open_model(folder, isa=isa)
    assert model.panels_path is not None and model.isa == isa
    assert logits(model) == logits(open_model(folder, panels=False))
    runs = [bytes(run) for run in open_model(folder, isa=isa, panels=False).native.panel_runs()]
    assert b"".join(runs) == first[HEADER_BYTES : -_native.PANEL_SLACK]


def test_the_layout_has_a_version():
    """When this digest changes, so must kPanelLayout (csrc/runtime/pack.h): files of the old layout are out there."""
    assert (_native.PANEL_LAYOUT, layout_digest()) == (2, "2fc90d002666d1e9")


def layout_digest() -> str:
    digest = hashlib.sha256()
    for spec, tensors in MODELS.values():
        for run in Model.from_arrays(spec, tensors, threads=1).native.panel_runs():
            digest.update(run)
    return digest.hexdigest()[:16]


def test_llm_uses_it_unless_told_not_to(folder):
    report = pack(folder)
    assert LLM(folder).model.panels_path == report.path
    assert LLM(folder, panels=False).model.panels_path is None
    assert LLM(folder).logits(TOKENS).tobytes() == LLM(folder, panels=False).logits(TOKENS).tobytes()


def test_a_valid_one_is_kept(folder):
    first = pack(folder)
    inode = first.path.stat().st_ino
    again = pack(folder)
    assert not again.is_new and again.path.stat().st_ino == inode
    assert pack(folder, force=True).is_new and first.path.stat().st_ino != inode
    assert sorted(path.name for path in folder.glob("*panels*")) == [PANELS_NAME]


@pytest.mark.parametrize(("change", "why"), [
    (lambda data: b"", "not a panels file"),
    (lambda data: data[:100], "not a panels file"),
    (lambda data: b"X" * len(data), "not a panels file"),
    (lambda data: data[:-1], "its header says"),
    (lambda data: data + b"\0", "its header says"),
    (lambda data: data[:HEADER_BYTES], "its header says"),
    (lambda data: data.__setitem__(slice(8, 12), struct.pack("<I", 99)), "another version"),
    (lambda data: data.__setitem__(slice(12, 16), struct.pack("<I", 99)), "another version"),
    (lambda data: data.__setitem__(slice(16, 24), struct.pack("<Q", 2**63)), "its header says"),
    (lambda data: data.__setitem__(slice(24, 32), struct.pack("<Q", 1)), "laid out for another model"),
    (lambda data: data.__setitem__(slice(32, 64), bytes(32)), "made for other weights"),
])
def test_a_damaged_file_is_not_used(folder, caplog, way, change, why):
    rewrite(pack(folder).path, change)
    assert_falls_back(folder, caplog, why)
    assert pack(folder).is_new and open_model(folder).panels_path is not None


@pytest.mark.parametrize("size_change", [-64, 64])
def test_a_consistent_file_of_another_size(folder, caplog, way, size_change):
    path = pack(folder).path
    header = PanelsHeader.from_bytes(path.read_bytes())
    other = PanelsHeader(header.nbytes + size_change, header.geometry, header.key, header.sha256, header.folder)
    rewrite(path, lambda data: other.to_bytes() + bytes(other.file_bytes - HEADER_BYTES))
    assert_falls_back(folder, caplog, "holds less than the model" if size_change < 0 else "laid out for another model")


def test_what_is_no_file(folder, caplog):
    path = folder / PANELS_NAME
    path.mkdir()
    assert_falls_back(folder, caplog, "not a regular file")
    path.rmdir()
    os.mkfifo(path)
    assert_falls_back(folder, caplog, "not a regular file")


@pytest.mark.parametrize("change", ["touched shard", "edited shard", "manifest", "config"])
def test_a_changed_cache_makes_it_stale(folder, caplog, change):
    pack(folder)
    shard = next(iter(sorted(folder.glob("params_shard_*.bin"))))
    if change == "touched shard":
        os.utime(shard, ns=(1, 1))
    elif change == "edited shard":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        os.utime(shard, ns=(2, 2))
    elif change == "manifest":
        manifest = folder / "tensor-cache.json"
        manifest.write_text(manifest.read_text() + "\n")
    else:
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    assert_falls_back(folder, caplog, "made for other weights, or before the cache was changed")


def test_a_moved_folder_keeps_it(folder, tmp_path):
    pack(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_model(moved).panels_path == moved / PANELS_NAME


def test_damaged_weights_are_not_packed(folder):
    shard = next(iter(folder.glob("params_shard_*.bin")))
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    with pytest.raises(TensorCacheError, match="md5"):
        pack(folder)
    assert not list(folder.glob("*panels*"))


def test_verify_finds_a_wrong_byte(folder, capsys):
    assert verify_panels(folder) is None
    path = pack(folder).path
    assert verify_panels(folder) == path
    rewrite(path, lambda data: data.__setitem__(HEADER_BYTES + 1000, data[HEADER_BYTES + 1000] ^ 1))
    with pytest.raises(TensorCacheError, match="checksum"):
        verify_panels(folder)
    assert main(["verify", str(folder), "--quiet"]) == 1
    assert PANELS_NAME in capsys.readouterr().err


def test_a_read_only_folder_has_it_in_the_user_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(panels_writer.os, "access", lambda path, mode: False)  # tests may run as root
    report = pack(folder)
    assert report.path.parent == tmp_path / "user-cache" / "panels" and report.path.name.startswith("cache-")
    assert not (folder / PANELS_NAME).exists()
    assert open_model(folder).panels_path == report.path
    assert remove_panels(folder) == [report.path] and not report.path.exists()


def test_where_the_user_cache_is(tmp_path, monkeypatch):
    assert panels_paths(tmp_path)[1].parent == tmp_path / "user-cache" / "panels"
    monkeypatch.delenv("KUMQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert panels_paths(tmp_path)[1].parent == tmp_path / "xdg" / "kumquant" / "panels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert panels_paths(tmp_path)[1].parent == tmp_path / "home" / ".cache" / "kumquant" / "panels"


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def no_space(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(panels_writer, "write_all", no_space)
    with pytest.raises(CapacityError, match="No space left"):
        pack(folder)
    assert not list(folder.glob("*panels*"))


def test_where_nothing_can_be_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(panels_writer.os, "access", lambda path, mode: False)
    (tmp_path / "user-cache").write_text("a file where a folder should be")
    with pytest.raises(Error, match="user-cache"):
        pack(folder)


def packing(folder: Path, ready, go) -> None:
    ready.set()
    go.wait()
    pack(folder, threads=1)


def test_two_writers_at_once(folder):
    context = multiprocessing.get_context("spawn")
    ready, go = [context.Event(), context.Event()], context.Event()
    writers = [context.Process(target=packing, args=(folder, one, go)) for one in ready]
    for writer in writers:
        writer.start()
    for one in ready:
        one.wait()
    go.set()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(path.name for path in folder.glob("*panels*")) == [PANELS_NAME]
    assert verify_panels(folder) == folder / PANELS_NAME


KILLED_HALF_WAY = """
import os, signal, sys
from kumquant import pack
from kumquant.runtime import panels_writer
def die(descriptor): os.kill(os.getpid(), signal.SIGKILL)
panels_writer.os.fsync = die  # everything is written, nothing is renamed
pack(sys.argv[1])
"""


def test_the_next_writers_file_is_not_deleted(folder, monkeypatch):
    path = pack(folder).path

    def meanwhile(parent):  # between the renaming and the end: the next writer has begun
        temporary_name(path).write_bytes(b"another's")

    monkeypatch.setattr("kumquant.runtime.panels_writer.fsync_dir", meanwhile)
    pack(folder, force=True)
    assert temporary_name(path).read_bytes() == b"another's"


def test_a_killed_writer_leaves_the_old_one_and_no_lock(folder, caplog):
    path = pack(folder).path
    old = path.read_bytes()
    os.utime(next(iter(folder.glob("params_shard_*.bin"))), ns=(1, 1))  # so that there is something to write
    run = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, str(folder)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == old and temporary_name(path).exists()
    assert pack(folder).is_new and not temporary_name(path).exists()
    assert open_model(folder).panels_path == path


def test_quiet_commands_say_nothing_and_others_one_line(folder, caplog):
    rewrite(pack(folder).path, lambda data: b"")
    assert main(["verify", str(folder), "--quiet"]) == 0 and not caplog.records
    assert main(["verify", str(folder)]) == 0 and len(caplog.records) == 1


def test_readers_keep_the_file_that_is_replaced_or_deleted(folder, way):
    pack(folder)
    model = open_model(folder)
    want = logits(model)
    pack(folder, force=True)
    assert logits(model) == want
    remove_panels(folder)
    assert logits(model) == want


CUT_SHORT = """
import os, sys
from kumquant import TensorCache, TensorCacheError
from kumquant.runtime import Model, panels
panels.COPIED_BYTES, panels.huge_mapped_bytes = 0, lambda: None
model = Model(TensorCache.open(sys.argv[1]), threads=2)
assert model.panels_path is not None
model.logits([1, 2, 3])
os.truncate(model.panels_path, {size})
try:
    model.logits([1, 2, 3])
except TensorCacheError as reason:
    print(reason.what)
other = Model(TensorCache.open(sys.argv[1]), threads=2)
print(other.panels_path, other.logits([1, 2, 3]).shape)
"""


@pytest.mark.parametrize("size", [0, HEADER_BYTES, HEADER_BYTES + 8192])
def test_a_file_cut_short_while_it_is_mapped_is_an_error_not_a_crash(folder, size):
    pack(folder)
    command = [sys.executable, "-X", "faulthandler", "-c", CUT_SHORT.format(size=size), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "the panels file can no longer be read\nNone (3, 101)\n"


STRAY_BUS_ERROR = CUT_SHORT.format(size=0) + """
import mmap
with open(sys.argv[1] + "/own", "w+b") as file:
    file.write(bytes(8192)); file.flush()
    own = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ)
    os.ftruncate(file.fileno(), 0)
    own[0]
"""


def test_other_bus_errors_stay_what_they_are(folder):
    pack(folder)
    run = subprocess.run([sys.executable, "-c", STRAY_BUS_ERROR, str(folder)], capture_output=True, check=False)
    assert run.returncode == -signal.SIGBUS


@pytest.mark.parametrize(("huge_bytes", "is_mapped"), [((0, 40_000), True), ((0, 10_000), False), ((None, None), True)])
def test_what_does_not_come_in_huge_pages_is_copied(folder, monkeypatch, huge_bytes, is_mapped):
    path = pack(folder).path
    monkeypatch.setattr(panels, "COPIED_BYTES", 0)
    values = iter(huge_bytes)
    monkeypatch.setattr(panels, "huge_mapped_bytes", lambda: next(values))
    model = open_model(folder)
    assert model.panels_path == path
    assert (str(path) in Path("/proc/self/maps").read_text()) == is_mapped
    assert logits(model) == logits(open_model(folder, panels=False))


def test_huge_pages_as_the_system_tells_them(tmp_path, monkeypatch):
    assert panels.huge_mapped_bytes() is None or panels.huge_mapped_bytes() % 1024 == 0
    monkeypatch.setattr(panels, "SMAPS", tmp_path / "smaps")
    assert panels.huge_mapped_bytes() is None
    (tmp_path / "smaps").write_text("Rss:              534044 kB\nFilePmdMapped:    2048 kB\n")
    assert panels.huge_mapped_bytes() == 2 << 20


def test_the_command(folder, capsys):
    assert main(["pack", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{folder / PANELS_NAME}: ") and "[written in " in captured.err
    assert main(["pack", str(folder)]) == 0
    assert "valid" in capsys.readouterr().err
    assert main(["pack", str(folder), "--remove"]) == 0
    assert capsys.readouterr().out == f"{folder / PANELS_NAME}: deleted\n"
    assert main(["pack", str(folder), "--remove"]) == 0
    assert "none" in capsys.readouterr().err and not list(folder.glob("*panels*"))

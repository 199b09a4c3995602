"""Torch files: tensors found without torch, and nothing from the file ever run."""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, write_checkpoint
from torch_files_for_tests import Storage, Tensor, pickled, write_archive, write_torch

from kumquant.checkpoint import open_checkpoint
from kumquant.convert import convert
from kumquant.errors import CheckpointError, Error, UnsupportedError

ONE = np.arange(6, dtype=np.float32)


def folder_with(tmp_path: Path, description: bytes, storages: dict[str, bytes] | None = None, **options) -> Path:
    (tmp_path / "config.json").write_text("{}")
    write_archive(tmp_path / "pytorch_model.bin", description, storages or {"0": ONE.tobytes()}, **options)
    return tmp_path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_read_as_they_were_saved(tmp_path, dtype):
    tensors = random_tensors({"b": (3, 5), "a": (7,), "scalar": (), "empty": (0, 4)}, dtype)
    write_torch(tmp_path / "pytorch_model.bin", tensors)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["b", "a", "scalar", "empty"]  # the dictionary's order
    for name, expected in tensors.items():
        assert checkpoint.read(name).dtype == dtype and np.array_equal(checkpoint.read(name), expected)


def test_views_of_one_storage(tmp_path):
    storage = Storage("7", ONE)
    state = {"whole": Tensor(storage, (2, 3)), "tied": Tensor(storage, (2, 3)), "row": Tensor(storage, (3,), 3)}
    checkpoint = open_checkpoint(folder_with(tmp_path, pickled(state), {"7": ONE.tobytes()}))
    assert np.array_equal(checkpoint.read("tied"), ONE.reshape(2, 3))
    assert np.array_equal(checkpoint.read("row"), [3, 4, 5])


@pytest.mark.parametrize("num_files", [1, 2])
def test_a_torch_checkpoint_converts_like_the_same_as_safetensors(tmp_path, num_files):
    tensors = random_tensors(llama_shapes(TINY_LLAMA))
    write_checkpoint(tmp_path / "safe", tensors, num_files=num_files)
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    if num_files == 1:
        write_torch(folder / "pytorch_model.bin", tensors)
    else:
        weight_map = {}
        for number in range(num_files):
            name = f"pytorch_model-{number + 1:05}-of-{num_files:05}.bin"
            part = dict(list(tensors.items())[number::num_files])
            write_torch(folder / name, part)
            weight_map |= dict.fromkeys(part, name)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for source in ("safe", "torch"):
        convert(tmp_path / source, tmp_path / f"out-{source}", "q4f16_1")
    for path in (tmp_path / "out-safe").iterdir():
        assert (tmp_path / "out-torch" / path.name).read_bytes() == path.read_bytes(), path.name


def test_safetensors_win_where_both_are_there(tmp_path):
    write_checkpoint(tmp_path, {"a": np.ones(3, np.float16)})
    write_torch(tmp_path / "pytorch_model.bin", {"a": np.zeros(3, np.float16)})
    assert open_checkpoint(tmp_path).read("a").sum() == 3


class Malicious:
    """Writes a file if its pickle is ever run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_code_runs(tmp_path):
    trace = tmp_path / "trace"
    attacks = [Malicious(exec, f"open({str(trace)!r}, 'w')"), Malicious(eval, "1"), Malicious(getattr, {}, "get"),
               Malicious(open, str(trace), "w"), Path("x"), np.arange(3)]
    for attack in attacks:
        folder = folder_with(tmp_path, pickled({"a": attack}))
        with pytest.raises(UnsupportedError, match=r"asks for something that is no tensor; found \w+") as caught:
            open_checkpoint(folder)
        assert caught.value.found in ("builtins.exec", "__builtin__.exec", "__builtin__.eval", "__builtin__.getattr",
                                      "io.open", "_io.open", "pathlib.PosixPath", "pathlib._local.PosixPath",
                                      "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    assert not trace.exists()


def test_what_the_file_makes_cannot_be_changed_from_the_file(tmp_path):
    """The opcode BUILD sets attributes of what is on the stack; here of the reader's own objects."""
    storage = Storage("0", ONE)
    description = pickled({"a": Tensor(storage, (6,))})
    at = next(position for op, _, position in pickletools.genops(description) if op.name == "REDUCE")
    while True:  # the last REDUCE is the tensor's
        later = [position for op, _, position in pickletools.genops(description)
                 if op.name == "REDUCE" and position > at]
        if not later:
            break
        at = later[0]
    change = pickle.dumps({"offset": -5}, 2)[2:-1]  # no PROTO, no STOP
    changed = description[: at + 1] + change + b"b" + description[at + 1:]
    with pytest.raises(CheckpointError, match=r"not a pickle that torch wrote.*tries to change a StoredTensor"):
        open_checkpoint(folder_with(tmp_path, changed))
    for name in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"):
        with pytest.raises(CheckpointError, match="tries to change a _"):
            open_checkpoint(folder_with(tmp_path, b"\x80\x02" + name + change + b"b."))


def tensor(offset=0, shape=(6,), stride=None, key="0", num_elements=None):
    return {"a": Tensor(Storage(key, ONE, num_elements), shape, offset, stride)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (tensor(offset=1), "reaches past its storage; found element 6; expected 6"),
        (tensor(shape=(2**40, 2**40)), "reaches past its storage"),
        (tensor(offset=-1), "not described as torch does"),
        (tensor(stride=(1, 1)), "not described as torch does"),
        (tensor(shape=("six",), stride=(1,)), "not described as torch does"),
        (tensor(shape=(2, 3), stride=(1, 2)), r"a view whose elements are not in order; found shape \[2, 3\], strides"),
        (tensor(shape=(60,), num_elements=60), "a storage is shorter than its tensors"),
        (tensor(key="../x"), r"a storage is missing; expected data/\.\./x"),
        (tensor(num_elements=-6), "a storage is not described as torch does"),
        ([1, 2], "no dictionary of tensors; found list"),
        ({"epoch": 3}, "something beside tensors by name; found epoch: int"),
        ({"model": OrderedDict()}, "something beside tensors by name"),
        ({7: Tensor(Storage("0", ONE), (6,))}, "something beside tensors by name"),
    ],
)
def test_descriptions_that_lie_are_refused(tmp_path, state, message):
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_checkpoint(folder_with(tmp_path, pickled(state)))


@pytest.mark.parametrize("description", [b"", b"\x80\x02", b"\x80\x02}", b"garbage", b"\x80\x02]" + b"]" * 9 + b"."])
def test_damaged_pickles_are_refused(tmp_path, description):
    with pytest.raises(CheckpointError):
        open_checkpoint(folder_with(tmp_path, description))


def nested(times: int) -> bytes:
    """A tuple that holds itself twice, again and again: small in memory, endless to hash or to print."""
    return b"\x80\x02})" + b"".join(b"q" + bytes((level,)) + b"h" + bytes((level,)) + b"\x86" for level in range(times))


@pytest.mark.parametrize(("description", "message"), [
    (nested(40) + b"K\x01s.", "keys are no names"),
    (nested(40) + b"Q.", "a storage is not described as torch does"),
    (b"\x80\x02]r\xff\xff\xff\x7f.", "no dictionary of tensors"),  # a memo of two billion entries
    (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "not a pickle that torch wrote"),
    (b"\x80\x02}(K\x01K\x02)K\x03u.", "keys are no names"),
], ids=["hash", "print", "memo", "bytes", "several"])
def test_small_files_that_ask_for_endless_work(tmp_path, description, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder_with(tmp_path, description))


def test_containers_that_are_not_torchs(tmp_path):
    good = pickled(tensor())
    with pytest.raises(UnsupportedError, match="not little-endian; found b'big'"):
        open_checkpoint(folder_with(tmp_path, good, byte_order="big"))
    with pytest.raises(UnsupportedError, match=r"the archive is compressed; found archive/data/0"):
        open_checkpoint(folder_with(tmp_path, good, compression=zipfile.ZIP_DEFLATED))
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))  # the magic number of the format before 1.6
    with pytest.raises(UnsupportedError, match=r"not a zip archive: a torch file from before version 1\.6"):
        open_checkpoint(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not laid out as a torch file"):
        open_checkpoint(tmp_path)


def test_every_cut_of_a_file_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = write_torch(tmp_path / "pytorch_model.bin", {"a": ONE})
    data = path.read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(Error):
            open_checkpoint(tmp_path)


def test_flipped_bytes_are_one_error_or_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = write_torch(tmp_path / "pytorch_model.bin", {"a": ONE})
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0xD1
        path.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(tmp_path)
            for name in checkpoint.tensors:
                checkpoint.read(name)
        except Error:
            continue


def test_a_file_that_torch_itself_wrote(tmp_path):
    torch = pytest.importorskip("torch", reason="skipped: torch is not installed")
    model = torch.nn.Linear(5, 3).to(torch.bfloat16)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    for name, parameter in model.state_dict().items():
        assert np.array_equal(checkpoint.read(name).astype(np.float32), parameter.float().numpy())

"""The door of GGUF files: what is read, and every lie refused by name before anything is mapped."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from kumquant.checkpoint.gguf.header import read_header
from kumquant.checkpoint.gguf.types import TYPES
from kumquant.errors import CheckpointError, Error, UnsupportedError
from kumquant.export.gguf_writer import PlannedTensor, header_of, write_gguf

METADATA = {"general.architecture": "llama", "a.bool": True, "a.int": 7, "a.float": 0.5, "a.text": "é",
            "a.list": ["x", "y"], "a.numbers": [1, -2]}
TENSORS = [PlannedTensor("a.weight", "F16", (2, 3)), PlannedTensor("b.weight", "Q4_0", (1, 64))]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA, TENSORS, [[np.arange(6, dtype=np.float16)], [np.zeros(36, np.uint8)]])
    return path


def test_reads_what_was_written(whole: Path) -> None:
    header = read_header(whole)
    assert header.metadata == METADATA
    assert [(t.name, t.type.name, t.shape, t.nbytes) for t in header.tensors] == [
        ("a.weight", "F16", (2, 3), 12), ("b.weight", "Q4_0", (1, 64), 36)]
    begin = header.tensors[0].begin
    assert begin % 32 == 0
    assert whole.read_bytes()[begin : begin + 12] == np.arange(6, dtype=np.float16).tobytes()


def test_types_are_those_of_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants", reason="skipped: the gguf package is not installed")
    for number, kind in TYPES.items():
        theirs = constants.GGMLQuantizationType(number)
        assert (theirs.name, constants.GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.block_values, kind.block_bytes))


def test_the_gguf_package_reads_our_files(whole: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="skipped: the gguf package is not installed")
    reader = gguf.GGUFReader(whole)
    assert reader.fields["a.text"].contents() == "é"
    assert [tensor.name for tensor in reader.tensors] == ["a.weight", "b.weight"]


@pytest.mark.parametrize("length", [0, 3, 23, 30, 60, 120, 200, 250])
def test_a_file_cut_anywhere_is_refused(whole: Path, length: int) -> None:
    whole.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(CheckpointError):
        read_header(whole)


def test_every_changed_byte_of_the_header_gives_a_typed_error_or_a_header(whole: Path) -> None:
    good = whole.read_bytes()
    end = len(header_of(METADATA, TENSORS))
    for position in range(end):
        damaged = bytearray(good)
        damaged[position] ^= 0xFF
        whole.write_bytes(damaged)
        try:
            read_header(whole)
        except Error as error:
            assert str(whole) in str(error)


def patched(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def tensor_bytes(name: str, extents: tuple[int, ...], kind: int, offset: int) -> bytes:
    text = name.encode()
    return (struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
            + struct.pack("<IQ", kind, offset))


B = tensor_bytes("b.weight", (64, 1), 2, 32)


@pytest.mark.parametrize(("new", "error", "message"), [
    (tensor_bytes("b.weight", (64, 1), 2, 33), CheckpointError, "not aligned"),
    (tensor_bytes("b.weight", (64, 1), 2, 0), CheckpointError, "share bytes"),
    (tensor_bytes("b.weight", (64, 1), 2, 1 << 40), CheckpointError, "past the end"),
    (tensor_bytes("b.weight", (64, 1 << 40), 2, 32), CheckpointError, "past the end"),
    (tensor_bytes("b.weight", (65, 1), 2, 32), CheckpointError, "no whole blocks of Q4_0"),
    (tensor_bytes("b.weight", (0, 1), 2, 32), CheckpointError, "impossible shape"),
    (tensor_bytes("b.weight", (1 << 63, 1), 2, 32), CheckpointError, "impossible shape"),
    (tensor_bytes("b.weight", (64, 1), 99, 32), UnsupportedError, "type that is not known"),
    (tensor_bytes("a.weight", (64, 1), 2, 32), CheckpointError, "twice"),
])
def test_lies_about_a_tensor(whole: Path, new: bytes, error: type[Error], message: str) -> None:
    patched(whole, B, new)
    with pytest.raises(error, match=message):
        read_header(whole)


@pytest.mark.parametrize(("position", "value", "error", "message"), [
    (0, b"GGML", CheckpointError, "not a GGUF file"),
    (4, struct.pack("<I", 1), UnsupportedError, "version of GGUF"),
    (4, struct.pack(">I", 3), UnsupportedError, "big-endian"),
    (8, struct.pack("<Q", 1 << 60), CheckpointError, "too short for its tensors"),
    (16, struct.pack("<Q", 1 << 60), CheckpointError, "too short for its metadata entries"),
    (24, struct.pack("<Q", 1 << 62), CheckpointError, "impossibly long"),
])
def test_lies_in_the_first_bytes(whole: Path, position: int, value: bytes, error: type[Error], message: str) -> None:
    data = bytearray(whole.read_bytes())
    data[position : position + len(value)] = value
    whole.write_bytes(data)
    with pytest.raises(error, match=message):
        read_header(whole)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 20])
def test_impossible_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header_of({"general.alignment": alignment}, []) + bytes(64))
    with pytest.raises(CheckpointError, match="impossible alignment"):
        read_header(path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header_of({"general.name": "abcdefgh"}, []).replace(b"abcdefgh", b"abc\xff\xfefgh") + bytes(64))
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read_header(path)

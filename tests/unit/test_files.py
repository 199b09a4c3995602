"""files.py: whole files or none, and OSError as our own errors."""

import errno
import os

import pytest

from kumquant.errors import CapacityError, Error, TensorCacheError
from kumquant.files import atomic_write, fsync_dir, temporary_name, translated_os_errors, write_all


def fail_with(code):
    def failing(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return failing


def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    atomic_write(path, "grün")
    assert path.read_bytes() == "grün".encode()
    atomic_write(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail_with(errno.ENOSPC))
        with pytest.raises(CapacityError, match="No space left on device") as caught:
            atomic_write(path, "new")
    assert "Free some space" in str(caught.value) and str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(Error, match="cannot write: No such file or directory") as caught:
        atomic_write(tmp_path / "no" / "a.json", "text")
    assert not isinstance(caught.value, CapacityError)


def test_write_all_goes_on_after_short_writes(tmp_path, monkeypatch):
    written = []

    def three_bytes(descriptor, data):
        written.append(bytes(data[:3]))
        return len(written[-1])

    monkeypatch.setattr(os, "write", three_bytes)
    write_all(1, b"0123456789")
    assert written == [b"012", b"345", b"678", b"9"]


def test_translated_os_errors():
    with (
        pytest.raises(TensorCacheError, match=r"x\.bin: cannot read: Input/output error"),
        translated_os_errors("read", "x.bin", TensorCacheError),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(CapacityError), translated_os_errors("write", "x.bin", TensorCacheError):
            raise OSError(code, os.strerror(code))
    with pytest.raises(KeyError), translated_os_errors("write", "x.bin"):
        raise KeyError("not an OSError")


def test_temporary_name_is_beside_the_file_and_stable(tmp_path):
    path = tmp_path / "params_shard_0.bin"
    assert temporary_name(path).parent == tmp_path
    assert temporary_name(path) == temporary_name(path) != path


def test_fsync_dir_accepts_file_systems_that_cannot(tmp_path, monkeypatch):
    fsync_dir(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_with(errno.EINVAL))
    fsync_dir(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError):
        fsync_dir(tmp_path)

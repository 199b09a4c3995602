"""The tour, as a list of command lines that a user could type as well."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..models import load_scheme
from ..tensor_cache import MANIFEST_NAMES
from .smollm2 import find_smollm2

DEMO_MODEL = Path(__file__).parents[1] / "demo_model"
DEFAULT_OUTPUT = "kumquant-demo"
DEFAULT_QUANTIZATION = "q4f16_1"

_GREEDY = ("--temperature", "0")
# The story is sampled as the model's generation_config.json proposes; the seed is one that tells a good story.
QUESTIONS = (
    ("Tell me a story about a fox and a lantern.", ("--seed", "4")),
    ("What is 27 + 15?", _GREEDY),
    ("Tom has 5 apples and gets 7 more. How many apples does Tom have now?", _GREEDY),
    ("What is the opposite of hot?", _GREEDY),
)
SMOLLM2_QUESTIONS = (
    ("What is the capital of France?", _GREEDY),
    ("At what temperature does water boil?", _GREEDY),
    ("What is photosynthesis?", _GREEDY),
)


@dataclass(frozen=True)
class TourModel:
    """What a tour can be about.

    output, quantization: its defaults. questions: each with its sampling options. find: the source, given the
    output's path.
    """

    output: str
    quantization: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    find: Callable[[Path], Path]


@dataclass(frozen=True)
class Stop:
    """One stop of the tour. title: what happens; arguments: the command line without the program's name."""

    title: str
    arguments: tuple[str, ...]

    @property
    def command_line(self) -> str:
        return shlex.join(("kumquant", *self.arguments))


def _own_model(output: Path) -> Path:
    if not (DEMO_MODEL / "config.json").is_file():
        raise CheckpointError("the demo model is not here", where=DEMO_MODEL,
                              hint="Install Kumquant from a wheel or a complete clone.")
    return DEMO_MODEL


MODELS = {
    "demo": TourModel(DEFAULT_OUTPUT, DEFAULT_QUANTIZATION, QUESTIONS, _own_model),
    "smollm2": TourModel("kumquant-smollm2", "q0f16", SMOLLM2_QUESTIONS, find_smollm2),
}


def tour(output: str | None = None, quantization: str | None = None, *, model: str = "demo", force: bool = False,
         threads: int | None = None) -> list[Stop]:
    """The stops: convert (unless ``output`` holds such a cache already), inspect, verify, ask, measure.

    model: a key of ``MODELS``. Raises CheckpointError if its source is not here and cannot be had.
    """
    about = MODELS[model]
    output = output or about.output
    using = () if threads is None else ("--threads", str(threads))
    stops = []
    if force or not _holds_cache(Path(output), quantization):
        mode = quantization or about.quantization
        convert = ("convert", str(about.find(Path(output))), "-o", output, "-q", mode, *using)
        stops.append(Stop("Convert the checkpoint", (*convert, "--force") if force else convert))
    stops.append(Stop("Look at the result", ("inspect", output, "--summary")))
    stops.append(Stop("Check every byte of it", ("verify", output)))
    stops += [
        Stop("Ask it something", ("generate", output, "--prompt", question, *sampling, *using))
        for question, sampling in about.questions
    ]
    stops.append(Stop("Measure its speed", ("bench", output, "--prefill", "128", "--context", "0", *using)))
    return stops


def _holds_cache(folder: Path, quantization: str | None) -> bool:
    """Whether ``folder`` holds a finished cache, of that mode if one is asked for."""
    if not any((folder / name).is_file() for name in MANIFEST_NAMES):
        return False
    scheme = load_scheme(folder)
    return quantization is None or (scheme is not None and scheme.name == quantization)

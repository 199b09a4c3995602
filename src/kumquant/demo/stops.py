"""The tour, as a list of command lines that a user could type as well."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..tensor_cache import MANIFEST_NAMES
from .smollm2 import find_smollm2

DEMO_MODEL = Path(__file__).parents[1] / "demo_model"
DEFAULT_OUTPUT = "kumquant-demo"
DEFAULT_QUANTIZATION = "q4f16_1"

QUESTIONS = (
    "Tell me a story about a fox and a lantern.",
    "What is 27 + 15?",
    "Tom has 5 apples and gets 7 more. How many apples does Tom have now?",
    "What is the opposite of hot?",
)
SMOLLM2_QUESTIONS = (
    "What is the capital of France?",
    "At what temperature does water boil?",
    "What is photosynthesis?",
)


@dataclass(frozen=True)
class TourModel:
    """What a tour can be about. output, quantization: its defaults. find: the source, given the output's path."""

    output: str
    quantization: str
    questions: tuple[str, ...]
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
    """The stops: convert (unless ``output`` holds a finished cache already), inspect, verify, ask, measure.

    model: a key of ``MODELS``. Raises CheckpointError if its source is not here and cannot be had.
    """
    about = MODELS[model]
    output, quantization = output or about.output, quantization or about.quantization
    using = () if threads is None else ("--threads", str(threads))
    stops = []
    if force or not any((Path(output) / name).is_file() for name in MANIFEST_NAMES):
        convert = ("convert", str(about.find(Path(output))), "-o", output, "-q", quantization, *using)
        stops.append(Stop("Convert the checkpoint", (*convert, "--force") if force else convert))
    stops.append(Stop("Look at the result", ("inspect", output, "--summary")))
    stops.append(Stop("Check every byte of it", ("verify", output)))
    stops += [
        Stop("Ask it something", ("generate", output, "--prompt", question, "--temperature", "0", *using))
        for question in about.questions
    ]
    stops.append(Stop("Measure its speed", ("bench", output, "--prefill", "128", "--context", "0", *using)))
    return stops

"""The demo model's tour, as a list of command lines that a user could type as well."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..tensor_cache import MANIFEST_NAMES

DEMO_MODEL = Path(__file__).parents[1] / "demo_model"
DEFAULT_OUTPUT = "kumquant-demo"
DEFAULT_QUANTIZATION = "q4f16_1"

QUESTIONS = (
    "Tell me a story about a fox and a lantern.",
    "What is 27 + 15?",
    "Tom has 5 apples and gets 7 more. How many apples does Tom have now?",
    "What is the opposite of hot?",
)


@dataclass(frozen=True)
class Stop:
    """One stop of the tour. title: what happens; arguments: the command line without the program's name."""

    title: str
    arguments: tuple[str, ...]

    @property
    def command_line(self) -> str:
        return shlex.join(("kumquant", *self.arguments))


def tour(output: str, quantization: str = DEFAULT_QUANTIZATION, *, force: bool = False,
         threads: int | None = None) -> list[Stop]:
    """The stops: convert (unless ``output`` holds a finished cache already), inspect, verify, ask, measure.

    Raises CheckpointError if the demo model did not come with this installation.
    """
    if not (DEMO_MODEL / "config.json").is_file():
        raise CheckpointError("the demo model is not here", where=DEMO_MODEL,
                              hint="Install Kumquant from a wheel or a complete clone.")
    using = () if threads is None else ("--threads", str(threads))
    stops = []
    if force or not any((Path(output) / name).is_file() for name in MANIFEST_NAMES):
        convert = ("convert", str(DEMO_MODEL), "-o", output, "-q", quantization, *using)
        stops.append(Stop("Convert the checkpoint", (*convert, "--force") if force else convert))
    stops.append(Stop("Look at the result", ("inspect", output, "--summary")))
    stops.append(Stop("Check every byte of it", ("verify", output)))
    stops += [
        Stop("Ask it something", ("generate", output, "--prompt", question, "--temperature", "0", *using))
        for question in QUESTIONS
    ]
    stops.append(Stop("Measure its speed", ("bench", output, "--prefill", "128", "--context", "0", *using)))
    return stops

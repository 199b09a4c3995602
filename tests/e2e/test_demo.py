"""``kumquant demo`` from its first command to its last, on the model that ships with Kumquant."""

import pytest

from kumquant.demo import DEMO_MODEL, QUESTIONS

pytestmark = pytest.mark.skipif(not (DEMO_MODEL / "model.safetensors").is_file(),
                                reason="skipped: the demo checkpoint is not in this tree")


def test_the_tour_works_and_the_second_time_starts_from_the_cache(kumquant, tmp_path):
    first = kumquant("demo", "--quiet", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    commands = [line.split()[2] for line in first.stdout.splitlines() if line.startswith("$ kumquant ")]
    assert commands == ["convert", "inspect", "verify", *["generate"] * len(QUESTIONS), "bench"]
    assert "\nok: " in first.stdout and "\ndecode " in first.stdout
    again = kumquant("demo", "--quiet", cwd=tmp_path)
    assert again.returncode == 0 and "$ kumquant convert" not in again.stdout
    assert kumquant("demo", "--quiet", "--force", "-q", "q0bf16", cwd=tmp_path).returncode == 0


def test_its_sums_come_out(kumquant, tmp_path):
    run = kumquant("convert", DEMO_MODEL, "-o", tmp_path / "cache", "-q", "q4f16_1", "--quiet")
    assert run.returncode == 0
    answers = kumquant("chat", tmp_path / "cache", "--temperature", "0", "--quiet", stdin="What is 2 + 3?\n")
    assert "5" in answers.stdout

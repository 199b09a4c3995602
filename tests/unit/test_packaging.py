"""What users and scripts rely on before any code runs: README commands, version, dependencies, CI."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import kumquant

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
SHELL_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def distribution(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement)[0].lower()


@pytest.mark.parametrize("block", SHELL_BLOCKS[:2], ids=["demo", "tests"])
def test_readme_commands_are_one_line_of_valid_shell(block):
    assert block.count("\n") == 1
    assert "source " not in block
    assert "activate" not in block
    subprocess.run(["sh", "-n", "-c", block], check=True)


def test_readme_commands_start_the_demo_and_the_tests():
    demo, tests = SHELL_BLOCKS[:2]
    assert demo.strip().endswith("kumquant demo")
    assert tests.strip().endswith("pytest")


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    missing = [t for t in targets if not t.startswith("http") and not (ROOT / t).exists()]
    assert targets
    assert missing == []


def test_version_is_the_projects():
    assert kumquant.__version__ == PROJECT["version"]


def test_dependencies_leave_torch_out():
    extras = PROJECT["optional-dependencies"]
    for requirement in PROJECT["dependencies"] + extras["test"] + extras["dev"]:
        assert distribution(requirement) not in {"torch", "transformers"}


def test_dev_extra_includes_the_test_extra():
    extras = PROJECT["optional-dependencies"]
    assert set(extras["test"]) <= set(extras["dev"])


def test_package_says_that_it_is_typed():
    assert (Path(kumquant.__file__).parent / "py.typed").exists()


INTERPRETERS = {"#!/bin/sh": "sh", "#!/usr/bin/env bash": "bash"}
SHELL_SCRIPTS = {
    path: INTERPRETERS[first_line]
    for path in (ROOT / ".ci/run", *sorted((ROOT / "scripts").iterdir()))
    if (first_line := path.read_text().splitlines()[0]) in INTERPRETERS
}


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    subprocess.run([SHELL_SCRIPTS[script], "-n", str(script)], check=True)


def test_ci_takes_its_test_command_from_the_readme():
    text = (ROOT / ".ci/run").read_text()
    program = re.search(r"awk '(.*)' README\.md", text)
    assert program is not None
    found = subprocess.run(
        ["awk", program.group(1), str(ROOT / "README.md")], check=True, capture_output=True, text=True
    )
    assert found.stdout == SHELL_BLOCKS[1]

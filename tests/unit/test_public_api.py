"""The public surface is a list, and every name on it is there."""

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kumquant

ROOT = Path(__file__).parents[2]
PUBLIC = [
    "CapacityError", "CheckpointError", "Error", "LLM", "Message", "RequestError", "SamplingParams",
    "TensorCache", "TensorCacheError", "UnsupportedError", "__version__", "convert", "evaluate", "pack",
]


def test_the_list():
    assert sorted(kumquant.__all__) == sorted(PUBLIC)
    assert dir(kumquant) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name):
    assert getattr(kumquant, name) is not None


@pytest.mark.parametrize("name", ["convert", "evaluate"])
def test_functions_stay_functions_although_folders_have_their_names(name):
    importlib.import_module(f"kumquant.{name}")
    assert inspect.isfunction(getattr(kumquant, name))
    code = f"import kumquant.{name}; from kumquant.{name} import {name} as it; assert kumquant.{name} is it"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kumquant' has no attribute 'nonsense'"):
        kumquant.nonsense  # noqa: B018


def test_import_is_light():
    code = "import kumquant, sys; print([m for m in ('numpy', 'jinja2', 'rich') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == kumquant.__version__


SIGNATURES = {
    "convert": ["source", "out", "quantization", "compat"],
    "TensorCache.open": ["path", "quantization"],
    "TensorCache.dequantize": ["self", "name"],
    "LLM": ["folder", "threads"],
    "LLM.generate": ["self", "prompts", "params"],
    "LLM.chat": ["self", "messages", "params", "stream"],
    "LLM.logits": ["self", "token_ids", "activations"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_others_rely_on(name):
    target = kumquant
    for part in name.split("."):
        target = getattr(target, part)
    assert list(inspect.signature(target).parameters)[:len(SIGNATURES[name])] == SIGNATURES[name]

"""plan: says beforehand what convert then does, from headers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, tiny_llama, write_checkpoint
from hub_for_tests import Hub, serving
from packed_for_tests import config_of, gptq, random_layer

from kumquant.cli import main
from kumquant.convert import convert, plan
from kumquant.errors import CheckpointError, UnsupportedError

DOCS = Path(__file__).parents[2] / "docs"


def packed(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    tensors = random_tensors(llama_shapes(TINY_LLAMA))
    name = "model.layers.0.mlp.down_proj.weight"
    layer = random_layer(rng, 48, 80, 32)
    del tensors[name]
    write_checkpoint(folder, tensors | gptq(layer, name.removesuffix(".weight")),
                     {**TINY_LLAMA, "quantization_config": config_of("gptq", 32)})
    return folder


@pytest.mark.parametrize("make", [tiny_llama, packed])
@pytest.mark.parametrize("mode", ["q4f16_1", "q0bf16", "q4f16_0"])
def test_sizes_and_routes_are_those_of_the_conversion(tmp_path, make, mode):
    source = make(tmp_path / "source")
    planned = plan(source, mode)
    report = convert(source, tmp_path / "out", mode)
    assert [entry.quantization for entry in planned.modes] == [mode]
    assert planned.modes[0].cache_bytes == report.cache_bytes
    assert planned.modes[0].bits_per_parameter == pytest.approx(report.stored_bits_per_parameter)
    assert planned.modes[0].routes == report.routes and planned.source_bytes == report.source_bytes
    assert planned.model_type == "llama" and planned.warnings == report.warnings[:len(planned.warnings)]
    assert planned.modes[0].seconds > 0 and planned.modes[0].peak_memory_bytes > 64 << 20


def test_every_mode_and_every_tensor(tmp_path):
    planned = plan(packed(tmp_path))
    modes = {entry.quantization: entry for entry in planned.modes}
    assert {"q0f16", "q3f16_1", "q4f16_1", "q4f32_1"} <= modes.keys()
    tensor = next(tensor for tensor in planned.tensors if tensor.name == "model.layers.0.mlp.down_proj.weight")
    assert tensor.stored_as == "4-bit GPTQ, group 32, symmetric" and tensor.shape == (48, 80)
    assert tensor.record == "model.layers.0.mlp.down_proj.weight"
    assert tensor.routes["q4f16_1"] == "4-bit GPTQ, group 32, symmetric: codes kept"
    assert "dequantized from 4-bit GPTQ" in tensor.routes["q3f16_1"]
    assert 0 < modes["q4f16_1"].lossy_bytes < planned.source_bytes
    assert modes["q0f16"].lossy_bytes < modes["q3f16_1"].lossy_bytes == planned.source_bytes - sum(
        use.source_bytes for use in modes["q3f16_1"].routes if use.is_lossless)


def test_what_stops_a_mode_and_what_stops_everything(tmp_path):
    planned = plan(tiny_llama(tmp_path / "good"), ["q4f16_1", "q4f16_autoawq"])
    assert planned.modes[0].stopped_by is None and "AWQ" in planned.modes[1].stopped_by
    with pytest.raises(UnsupportedError, match="unknown model family"):
        plan(tiny_llama(tmp_path / "unknown", model_type="t5"))
    write_checkpoint(tmp_path / "incomplete", {"model.norm.weight": np.ones(48, np.float16)})
    with pytest.raises(CheckpointError, match="are missing"):
        plan(tmp_path / "incomplete")


def test_of_a_model_on_the_hub_only_headers_are_fetched(tmp_path, monkeypatch):
    source = packed(tmp_path / "source")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    header = 8 + int.from_bytes(files["model.safetensors"][:8], "little")
    with serving(Hub(files, large=("model.safetensors",))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        remote = plan("org/model", "q4f16_1")
        ranges = [wanted for _, path, wanted, _ in hub.requests if path.endswith("model.safetensors")]
    assert ranges == ["bytes=0-7", f"bytes=0-{header - 1}"]
    local = plan(source, "q4f16_1")
    assert remote.tensors == local.tensors and remote.modes[0].routes == local.modes[0].routes
    assert remote.modes[0].cache_bytes == local.modes[0].cache_bytes


def test_command_line(tmp_path, capsys):
    source = tiny_llama(tmp_path)
    assert main(["plan", str(source), "-q", "q4f16_1", "-q", "q4f16_autoawq", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"source      {source}" and lines[1] == "family      llama"
    assert re.fullmatch(r"mode +cache +bits a parameter +memory +time +lossy", lines[5])
    assert re.fullmatch(r"q4f16_1 +\d\S* kB +\d\.\d{4} +\d+\.\d MB +\d+\.\d s +\d+%", lines[6])
    assert lines[7] == "q4f16_autoawq  stopped"
    assert "  stopped by: " in lines[-1] or any(line.startswith("  stopped by: ") for line in lines)
    assert main(["plan", str(source), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "\nq3f16_0, q3f16_1\n" in shown and len(shown.splitlines()) < 60  # modes that do the same stand together
    assert main(["plan", str(source), "--tensors", "-q", "q0f16", "--quiet"]) == 0
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "nothing"), "--quiet"]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_json_has_the_documented_keys(tmp_path, capsys):
    assert main(["plan", str(tiny_llama(tmp_path)), "-q", "q4f16_1", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    section = re.search(r"^## kumquant plan\n(.*?)(?=^## )", (DOCS / "json.md").read_text(), re.MULTILINE | re.DOTALL)
    documented = {key for line in section[1].splitlines() if line.startswith("| `")
                  for key in re.findall(r"`([^`]+)`", line.split(" | ")[0])}

    def keys(value, prefix):
        if isinstance(value, dict):
            return set().union(*(keys(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()))
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            return set().union(*(keys(item, f"{prefix}[]") for item in value))
        return {prefix}

    assert keys(document, "") == documented

"""``kumquant inspect`` and ``verify``: whole outputs, on the seed's bare manifest and on damaged caches."""

import json
from pathlib import Path

import pytest
from checkpoints_for_tests import tiny_llama

import kumquant
from kumquant.cli import main

SEED = Path(__file__).parents[2].parent / "shared" / "seed" / "ndarray-cache-b16.json"
needs_seed = pytest.mark.skipif(not SEED.is_file(), reason="skipped: ../shared is not there")


@needs_seed
def test_the_seeds_manifest_alone_is_enough(capsys):
    assert main(["inspect", str(SEED)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert lines[:14] == [
        f"manifest          {SEED}",
        "family            llama or mistral or ministral3 or granite or smollm3",
        "quantization      q4f32_1",
        "dimensions        layers 6, hidden 768, FFN 3,072, vocabulary 32,128, head of its own",
        "heads             24 query, 8 key/value, of 32 (inferred)",
        "parameters        101,263,104",
        "bits a parameter  5.0027 logical, 4.5011 stored",
        "stored            57.0 MB in 2 shards, 65 records",
        "missing shards    params_shard_0.bin, params_shard_1.bin",
        "",
        "record                                          shape     dtype     stored as       bytes  shard"
        "                   offset",
        "lm_head.q_weight                                32128x96  uint32               12,337,152"
        "  params_shard_0.bin           0",
        "lm_head.q_scale                                 32128x24  bfloat16              1,542,144"
        "  params_shard_0.bin  12,337,152",
        "model.embed_tokens.q_weight                     32128x96  uint32               12,337,152"
        "  params_shard_0.bin  13,879,296",
    ]
    assert len(lines) == 11 + 65


@needs_seed
def test_the_seeds_manifest_as_json(capsys):
    assert main(["inspect", str(SEED), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["missing_shards"] == ["params_shard_0.bin", "params_shard_1.bin"]
    assert [shard["missing"] for shard in document["shards"]] == [True, True]
    assert round(document["bits_per_parameter"], 4) == 5.0027
    assert round(document["stored_bits_per_parameter"], 4) == 4.5011
    assert document["inferred"] == ["head_dim", "num_attention_heads", "num_key_value_heads"]


@pytest.fixture
def cache(tmp_path):
    kumquant.convert(tiny_llama(tmp_path / "source"), tmp_path / "cache", quantization="q4f16_1")
    return tmp_path / "cache"


def test_a_config_that_cannot_be_used_is_a_warning(capsys, cache):
    (cache / "config.json").write_text('{"model_type": "mamba"}')
    (cache / "mlc-chat-config.json").unlink()
    assert main(["inspect", str(cache), "--summary"]) == 0
    captured = capsys.readouterr()
    assert "family            llama or mistral or ministral3 or granite or smollm3\n" in captured.out
    assert captured.err.startswith("warning: ") and "'mamba'" in captured.err


def test_inspect_and_verify_of_what_is_no_cache(capsys, tmp_path):
    for command in ("inspect", "verify"):
        assert main([command, str(tmp_path)]) == 1
        assert capsys.readouterr().err.startswith(f"kumquant: error: {tmp_path}: no manifest in this folder")


def test_verify_tells_every_problem(capsys, cache):
    shard = cache / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[7] ^= 255
    shard.write_bytes(data)
    assert main(["verify", str(cache)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kumquant: error: params_shard_0.bin: md5 is ")


def test_a_manifest_without_shards_is_said_to_be_empty(capsys, tmp_path):
    (tmp_path / "tensor-cache.json").write_text('{"metadata": {}, "records": []}')
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr() == (
        "ok: 0 shards, 0 tensors, 0 bytes\n",
        "warning: the manifest lists no shards: there is nothing to compare, and no model\n")


def test_verify_says_what_it_could_not_check(capsys, cache):
    manifest = json.loads((cache / "tensor-cache.json").read_text())
    del manifest["records"][0]["md5sum"]
    (cache / "tensor-cache.json").write_text(json.dumps(manifest))
    assert main(["verify", str(cache)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("ok: 1 shard, 25 tensors, ")
    assert captured.err == "warning: params_shard_0.bin: no md5 in the manifest; its length is right\n"

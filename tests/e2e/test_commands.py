"""Every command on a tiny random model, as a user calls it: exit codes, stdout, stderr."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import kumquant as kq

QUIET = ("--temperature", "0", "--quiet")


def test_convert_inspect_verify(kumquant, tiny_source, tmp_path):
    out = tmp_path / "out"
    run = kumquant("convert", tiny_source, "-o", out, "-q", "q4f32_1")
    assert run.returncode == 0
    assert run.stdout.startswith(f"{out}: 1 shard, 25 tensors, ") and run.stdout.count("\n") == 1
    run = kumquant("inspect", out)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert lines[1:5] == [
        "family            llama", "quantization      q4f32_1",
        "dimensions        layers 2, hidden 48, FFN 80, vocabulary 266, head of its own",
        "heads             3 query, 1 key/value, of 16",
    ]
    assert len(lines) == 9 + 2 + 25
    run = kumquant("verify", out)
    size = (out / "params_shard_0.bin").stat().st_size
    assert (run.returncode, run.stdout, run.stderr) == (0, f"ok: 1 shard, 25 tensors, {size / 1e3:.1f} kB\n", "")


def test_a_finished_cache_is_not_overwritten(kumquant, tiny_source, tiny_cache):
    before = {path.name: path.read_bytes() for path in tiny_cache.iterdir()}
    run = kumquant("convert", tiny_source, "-o", tiny_cache, "-q", "q4f16_1")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--force" in run.stderr and "Traceback" not in run.stderr
    assert {path.name: path.read_bytes() for path in tiny_cache.iterdir()} == before
    run = kumquant("convert", tiny_source, "-o", tiny_cache, "-q", "q4f16_1", "--force", "--quiet")
    assert run.returncode == 0
    assert {path.name: path.read_bytes() for path in tiny_cache.iterdir()} == before


def test_damage_is_found_and_named(kumquant, tiny_cache, tmp_path):
    damaged = shutil.copytree(tiny_cache, tmp_path / "damaged")
    shard = damaged / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    run = kumquant("verify", damaged)
    assert (run.returncode, run.stdout) == (1, "")
    assert "params_shard_0.bin: md5 is " in run.stderr and "Traceback" not in run.stderr
    shard.write_bytes(data[:-1])
    run = kumquant("generate", damaged, "--prompt", "x")
    assert (run.returncode, run.stdout) == (1, "")
    assert "params_shard_0.bin" in run.stderr and "Traceback" not in run.stderr
    shard.unlink()
    assert "params_shard_0.bin: missing" in kumquant("verify", damaged).stderr
    run = kumquant("inspect", damaged, "--summary")
    assert run.returncode == 0 and "missing shards    params_shard_0.bin\n" in run.stdout


def test_generate_is_the_python_api(kumquant, tiny_cache):
    run = kumquant("generate", tiny_cache, "--prompt", "hello world", "--raw", "--max-tokens", "20", *QUIET)
    with kq.LLM(tiny_cache) as llm:
        (result,) = llm.generate("hello world", kq.SamplingParams(max_tokens=20, temperature=0))
        answer = llm.chat([{"role": "user", "content": "hello"}], kq.SamplingParams(max_tokens=20, temperature=0))
    assert (run.returncode, run.stdout, run.stderr) == (0, result.text + "\n", "")
    run = kumquant("generate", tiny_cache, "--prompt", "hello", "--max-tokens", "20", "--json", *QUIET)
    assert json.loads(run.stdout)["token_ids"] == answer.token_ids


def test_a_seed_repeats_and_threads_change_nothing(kumquant, tiny_cache):
    arguments = ("generate", tiny_cache, "--prompt", "hello", "--seed", "4", "--max-tokens", "30", "--quiet", "--json")
    texts = {json.loads(kumquant(*arguments, "--threads", n).stdout)["text"] for n in (1, 2, 2)}
    assert len(texts) == 1


def test_generate_reads_stdin(kumquant, tiny_cache):
    arguments = ("generate", tiny_cache, "--raw", "--max-tokens", "5", *QUIET)
    piped = kumquant(*arguments, stdin="hello\n")
    assert piped.returncode == 0
    assert piped.stdout == kumquant(*arguments, "--prompt", "hello").stdout


def test_chat_from_a_pipe(kumquant, tiny_cache):
    run = kumquant("chat", tiny_cache, "--max-tokens", "6", "--temperature", "0", stdin="hello\n/undo\nhello\nmore\n")
    assert run.returncode == 0
    tokens = [line for line in run.stderr.splitlines() if line.endswith(" tokens/s]")]
    assert len(tokens) == 3
    with kq.LLM(tiny_cache) as llm:
        params = kq.SamplingParams(max_tokens=6, temperature=0)
        first = llm.chat([{"role": "user", "content": "hello"}], params).text
        dialog = [("user", "hello"), ("assistant", first), ("user", "more")]
        second = llm.chat([{"role": role, "content": text} for role, text in dialog], params).text
    assert run.stdout == f"{first}\n{first}\n{second}\n"


def test_bench_and_evaluate(kumquant, tiny_cache, tiny_source, tmp_path):
    small = ("--rounds", "1", "--prefill", "8", "--decode", "2", "--context", "0", "--batch", "1")
    run = kumquant("bench", tiny_cache, *small, "--json")
    assert (run.returncode, len(json.loads(run.stdout)["results"])) == (0, 2)
    assert kumquant("bench", tiny_cache, *small).stdout.startswith("test     tokens  context  batch  ")
    text = tmp_path / "text.txt"
    text.write_text("hello world. " * 20)
    run = kumquant("evaluate", tiny_cache, text, "--against", tiny_source)
    assert run.returncode == 0
    assert [line.split("  ")[0] for line in run.stdout.splitlines()] == [
        "perplexity", "scored tokens", "against", "mean KL", "same top token"]


def test_a_cache_without_tokenizer_opens_and_computes(kumquant, tiny_source, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_source / name, source)
    run = kumquant("convert", source, "-o", tmp_path / "cache", "-q", "q4f16_1")
    assert run.returncode == 0 and "no tokenizer" in run.stderr
    with kq.LLM(tmp_path / "cache") as llm:
        (result,) = llm.generate([5, 6, 7], kq.SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
        assert (len(result.token_ids), result.text) == (4, "")
        np.testing.assert_array_equal(llm.logits([5, 6, 7])[-1].argmax(), result.token_ids[0])
    assert kumquant("bench", tmp_path / "cache", "--rounds", "1").returncode == 0
    run = kumquant("generate", tmp_path / "cache", "--prompt", "x", "--raw")
    assert run.returncode == 2 and "tokenizer.json" in run.stderr


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("convert", "org/no-such-model", "-o", "x", "-q", "q4f16_1"), 1, "not downloaded yet"),
    (("convert", "{source}", "-o", "x", "-q", "q9f9"), 2, "unknown quantization mode"),
    (("verify", "nowhere"), 1, "no such file or folder"),
    (("generate", "nowhere", "--prompt", "x"), 1, "no such file or folder"),
    (("generate", "{cache}", "--prompt", "x" * 400), 2, "the prompt is longer than the context; found 4"),
    (("generate", "{cache}", "--prompt", "", "--raw"), 2, "the prompt is empty"),
    (("generate", "{cache}", "--prompt", "x", "--temperature", "-1"), 2, "temperature: value out of range"),
    (("generate", "{cache}", "--frobnicate"), 2, "unrecognized arguments: --frobnicate"),
    (("bench", "{cache}", "--prefill", "300"), 2, "found 300 tokens; expected at most 256"),
    (("evaluate", "{cache}", "nowhere.txt"), 2, "nowhere.txt: cannot be read"),
])
def test_bad_input_is_one_clear_error(kumquant, tiny_source, tiny_cache, tmp_path, arguments, code, message):
    filled = [argument.format(source=tiny_source, cache=tiny_cache) for argument in arguments]
    run = kumquant(*filled, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (code, "")
    assert message in run.stderr and "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_closes_early_ends_quietly(tiny_cache):
    command = f'"{sys.executable}" -m kumquant inspect "{tiny_cache}" | head -n 1'
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert run.stderr == "" and run.stdout.startswith("manifest ")


def test_ctrl_c_keeps_the_text_so_far(tiny_cache):
    command = [sys.executable, "-m", "kumquant", "generate", str(tiny_cache), "--prompt", "hello", "--raw",
               "--max-tokens", "240", "--ignore-eos", "--json", "--quiet"]
    # Without a prompt on the command line the program waits for stdin: the signal is certain to come in time.
    waiting = [part for part in command if part not in ("--prompt", "hello")]
    process = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"},
                               # Where the tests run in the background, their processes inherit that Ctrl-C is ignored.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")

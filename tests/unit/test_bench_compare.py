"""kumquant bench --compare: what is run, how it is paired, what is told. The peers are small stand-ins."""

import json
import stat
import sys
from pathlib import Path

import pytest
from checkpoints_for_tests import tiny_llama
from test_cli_documents import assert_documented

import kumquant.bench
from kumquant.bench import BenchSettings, Opening, Peer, PeerError, Speeds, Workload, compare, find_peer
from kumquant.cli import main
from kumquant.errors import RequestError
from kumquant.processors import available_processors, processors_for

SMALL = BenchSettings(prefill=8, decode=2, context=(0, 4), batch=(1, 2), rounds=2)
SMALL_OPTIONS = ["--prefill", "8", "--decode", "2", "--context", "0,4", "--batch", "1,2", "--rounds", "2"]

LLAMA_BENCH = """
import json, pathlib, sys
words = sys.argv[1:]
open({log!r}, "a").write(json.dumps([pathlib.Path(sys.argv[0]).name, *words]) + "\\n")
def values(flag):
    return [int(one) for one in words[words.index(flag) + 1].split(",")] if flag in words else [0]
if sys.argv[0].endswith("batched-bench"):
    for batch in values("-npl"):
        speed = f"{{100 * batch:8.2f}}"
        print(f"|     64 |      2 | {{batch:4}} |    132 |    0.010 |  6400 |    0.020 | {{speed}} |  0.03 |  1 |")
else:
    rate = 10.0 if "-fa" in words else 20.0
    print("some remark\\n" + json.dumps([
        {{"n_prompt": prompt, "n_gen": count, "n_depth": depth, "avg_ts": rate + depth}}
        for prompt in values("-p") for count in values("-n") for depth in values("-d")]))
"""

GENAI_PYTHON = """
import json, sys
if sys.argv[1] == "-c":
    sys.exit(0 if {installed!r} else 1)
job = json.loads(sys.argv[4])
answer = {{"peak_rss_bytes": 2**20, "first_token_s": 0.5, "tokens_per_s": [float(one[1]) for one in job["workloads"]]}}
print("a remark\\n" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return kumquant.convert(tiny_llama(folder / "source", max_position_embeddings=256), folder / "cache").out


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Kumquant's own benchmark is not run: every speed is 32, the first token takes 0.25 s, the memory is 2 MiB."""

    def answer(self, setting, prefill, tokens, contexts, batches, *rest):
        shapes = [("prefill", prefill, 0, 1), *(("decode", tokens, context, 1) for context in contexts),
                  *(("decode", tokens, 64, batch) for batch in batches)]
        keys = ("test", "tokens", "context", "batch")
        results = [dict(zip(keys, shape), tokens_per_s=32.0) for shape in shapes]
        return {"results": results, "first_token_s": 0.25, "peak_rss_bytes": 2**21}

    monkeypatch.setattr(kumquant.bench.Kumquant, "_bench", answer)


@pytest.fixture
def llamacpp(tmp_path):
    """A folder of stand-ins for llama.cpp's programs, and the log of how they were called."""
    log = tmp_path / "calls.jsonl"
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("llama-bench", "llama-batched-bench"):
        program(folder / name, LLAMA_BENCH.format(log=str(log)))
    return folder, log


class Recorded(Peer):
    """A peer that notes its calls in a list shared with others."""

    settings = ("slow", "fast")

    def __init__(self, name, calls, fails_at=None):
        self.name, self.calls, self.fails_at = name, calls, fails_at

    def how_to_install(self):
        return "buy one" if self.fails_at == "install" else None

    def prepare(self, cache, work):
        if self.fails_at == "prepare":
            raise PeerError("no such family", where=self.name)

    def measure(self, setting, workloads, threads, processors):
        self.calls.append((self.name, setting))
        if self.fails_at == len(self.calls):
            raise PeerError("ended with 1", where=self.name)
        rate = 2.0 if setting == "fast" else 1.0
        return Speeds({one: rate * one.tokens for one in workloads}, 1000)

    def open(self, setting, threads, processors):
        return Opening(0.1 if setting == "fast" else 0.2, 500 if setting == "slow" else 600)


def test_every_setting_runs_every_round_and_the_order_turns(cache, quick):
    calls = []
    report = compare(cache, [Recorded("a", calls), Recorded("b", calls)], SMALL, threads=1)
    assert calls == [("a", "slow"), ("a", "fast"), ("b", "slow"), ("b", "fast"),
                     ("b", "fast"), ("b", "slow"), ("a", "fast"), ("a", "slow")]
    assert [one.measure for one in report.results] == [
        "prefill 8", "decode @0", "decode @4", "batch 2", "first token", "peak memory"]
    assert [one.unit for one in report.results] == ["tokens/s"] * 4 + ["s", "bytes"]
    assert (report.threads, report.rounds, report.missing, report.failed) == (1, 2, (), ())


def test_the_better_setting_counts_whether_more_or_less_is_better(cache, quick):
    report = compare(cache, [Recorded("a", [])], SMALL, threads=1)
    by_measure = {one.measure: one for one in report.results}
    prefill, first, memory = (by_measure[name] for name in ("prefill 8", "first token", "peak memory"))
    assert [one.peers[0].setting for one in (prefill, first, memory)] == ["fast", "fast", "slow"]
    assert prefill.peers[0].figure.median == 16.0
    assert [one.peers[0].ratio.median for one in (prefill, first, memory)] == [32 / 16, 0.25 / 0.1, 2**21 / 500]


def test_ratios_are_of_the_same_round(cache, quick):
    class Changing(Recorded):
        def measure(self, *arguments):
            found = super().measure(*arguments)
            return Speeds({one: 4.0 * len(self.calls) for one in found.tokens_per_s}, 1)

    peer = Changing("a", [])
    peer.settings = ("only",)
    prefill = compare(cache, [peer], SMALL, threads=1).results[0]
    assert (prefill.peers[0].figure.min, prefill.peers[0].figure.max) == (4.0, 8.0)
    assert (prefill.peers[0].ratio.min, prefill.peers[0].ratio.median, prefill.peers[0].ratio.max) == (4.0, 6.0, 8.0)


@pytest.mark.parametrize(("fails_at", "reason"), [("prepare", "a: no such family"), (2, "a: ended with 1")])
def test_a_peer_that_fails_is_named_and_the_others_go_on(cache, quick, fails_at, reason):
    report = compare(cache, [Recorded("a", [], fails_at), Recorded("b", [])], SMALL, threads=1)
    assert [(one.peer, one.reason) for one in report.failed] == [("a", reason)]
    assert all([peer.peer for peer in one.peers] == ["b"] for one in report.results)


def test_what_is_not_installed_is_named_with_how_to_install_it(cache, quick):
    report = compare(cache, [Recorded("a", [], "install"), Recorded("b", [])], SMALL, threads=1)
    assert [(one.peer, one.reason) for one in report.missing] == [("a", "buy one")]
    with pytest.raises(PeerError, match="none of the peers is installed; found a\na: buy one") as caught:
        compare(cache, [Recorded("a", [], "install")], SMALL)
    assert caught.value.exit_code == 1


def test_llamacpp_runs_its_programs_on_our_gguf_file(cache, quick, llamacpp, tmp_path):
    folder, log = llamacpp
    models = tmp_path / "models"
    report = compare(cache, [find_peer("llama.cpp", folder)], SMALL, threads=1, models=models)
    (kept,) = models.iterdir()
    gguf = kept / "model-q4_0.gguf"
    assert kept.name.startswith("cache-") and gguf.read_bytes()[:4] == b"GGUF"
    single = ["llama-bench", "-m", str(gguf), "-t", "1", "-r", "1", "-o", "json"]
    batched = ["llama-batched-bench", "-m", str(gguf), "-t", "1", "-tb", "1", "-c"]
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert calls[:4] == [
        [*single, "-p", "8", "-n", "0"],
        [*single, "-p", "0", "-n", "2", "-d", "0,4"],
        [*batched, "268", "-npp", "64", "-ntg", "2", "-npl", "2"],
        [*single, "-p", "16", "-n", "0", "--no-warmup"],
    ]
    assert calls[4] == [*single, "-fa", "off", "-ctk", "q8_0", "-p", "8", "-n", "0"]
    figures = {one.measure: (one.peers[0].setting, one.peers[0].figure.median) for one in report.results}
    assert figures["prefill 8"] == ("default", 20.0)
    assert figures["decode @4"] == ("default", 24.0)
    assert figures["batch 2"] == ("default", 200.0)


def test_ik_llamacpp_is_not_taken_for_llamacpp(llamacpp, monkeypatch):
    folder, _ = llamacpp
    monkeypatch.setenv("PATH", str(folder))
    assert find_peer("llama.cpp").how_to_install() is None
    assert "ik_llama.cpp=FOLDER" in find_peer("ik_llama.cpp").how_to_install()
    peer = find_peer("ik_llama.cpp", folder)
    assert peer.how_to_install() is None
    assert peer.settings == ("rtr, fa off", "rtr", "rtr, q8_0 KV")  # repacking the file takes its llama-quantize


def test_ik_llamacpp_generates_after_a_prompt(cache, quick, llamacpp, tmp_path):
    folder, log = llamacpp
    peer = find_peer("ik_llama.cpp", folder)
    peer.prepare(cache, tmp_path)
    anywhere = available_processors()
    with pytest.raises(PeerError, match=r"tells no speed of this; found \[0\]; expected 4"):  # a stand-in without -gp
        peer.measure("rtr, fa off", [Workload("decode", 2, 4)], 1, anywhere)
    assert json.loads(log.read_text())[-4:] == ["-n", "0", "-gp", "4,2"]
    peer.measure("rtr, q8_0 KV", [Workload("decode", 2, 64, 2)], 1, anywhere)
    assert json.loads(log.read_text().splitlines()[-1])[-7:] == ["-rtr", "-fa", "1", "-ctk", "q8_0", "-ctv", "q8_0"]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_python_peer_runs_in_its_own_python_on_its_own_folder(cache, quick, tmp_path, name):
    python = program(tmp_path / "python", GENAI_PYTHON.format(installed=True))
    model = tmp_path / "model"
    model.mkdir()
    peer = find_peer(name, model, str(python))
    with pytest.raises(RequestError, match="no model folder of"):
        peer.prepare(cache, tmp_path)
    (model / {"openvino": "openvino_model.xml", "onnxruntime": "genai_config.json"}[name]).touch()
    report = compare(cache, [peer], SMALL, threads=1)
    assert [one.peers[0].figure.median for one in report.results] == [8.0, 2.0, 2.0, 2.0, 0.5, 2**20]


def test_llamacpp_without_its_programs_is_the_package(cache, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    python = program(tmp_path / "python", GENAI_PYTHON.format(installed=True) + f"""
open({str(tmp_path / "calls")!r}, "a").write(json.dumps([*sys.argv[2:4], job["options"]]) + "\\n")
""")
    peer = find_peer("llama.cpp", None, str(python))
    assert (peer.name, peer.settings) == ("llama.cpp", ("default", "fa off, q8_0 K"))
    report = compare(cache, [peer], SMALL, threads=1, models=tmp_path / "models")
    assert report.results[0].peers[0].figure.median == 8.0
    (model,) = (tmp_path / "models").iterdir()
    assert (model / "llama.cpp" / "model.gguf").read_bytes()[:4] == b"GGUF"
    runtime, folder, options = json.loads((tmp_path / "calls").read_text().splitlines()[-5])
    assert (runtime, folder) == ("llama.cpp", str(model / "llama.cpp"))
    assert options == {"flash_attn_type": 0, "type_k": 8}
    missing = find_peer("llama.cpp", None, "no-such-python").how_to_install()
    assert missing.startswith("pip install llama-cpp-python") and "llama.cpp=FOLDER" in missing


@pytest.mark.parametrize("python", ["no-such-python", "without"])
def test_a_python_without_the_package_is_not_installed(tmp_path, python):
    path = tmp_path / python
    if python == "without":
        program(path, GENAI_PYTHON.format(installed=False))
    assert find_peer("openvino", None, str(path)).how_to_install().startswith("pip install openvino-genai")


def test_answers_that_are_no_answers(cache, quick, llamacpp, tmp_path):
    folder, _ = llamacpp
    program(folder / "llama-bench", "print('hello')")
    report = compare(cache, [find_peer("llama.cpp", folder), Recorded("b", [])], SMALL, threads=1)
    assert report.failed[0].reason == "answers no JSON; found hello\n"
    program(folder / "llama-bench", "import sys; sys.exit('cannot load the model')")
    report = compare(cache, [find_peer("llama.cpp", folder), Recorded("b", [])], SMALL, threads=1)
    assert report.failed[0].reason.endswith(": ended with 1\ncannot load the model")


def test_the_command_prints_a_table_and_names_what_is_missing(cache, llamacpp, capsys):
    folder, _ = llamacpp
    arguments = ["bench", str(cache), *SMALL_OPTIONS, "--threads", "1", "--compare"]
    assert main([*arguments, f"llama.cpp={folder},ik_llama.cpp"]) == 0
    captured = capsys.readouterr()
    assert "ik_llama.cpp is not installed: build llama-bench" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].split() == ["measure", "runtime", "setting", "median", "min", "max", "ratio"]
    assert lines[1].split()[:3] == ["prefill", "8", "tokens/s"] and "kumquant" in lines[1]
    assert lines[2].split()[:5] == ["llama.cpp", "default", "20.0", "20.0", "20.0"]



def test_every_key_of_the_json_is_documented(cache, quick, llamacpp, capsys):
    folder, _ = llamacpp
    program(folder / "llama-quantize", "import sys; sys.exit(3)")
    peers = f"llama.cpp={folder},ik_llama.cpp={folder},openvino"
    arguments = ["--peer-python", "no-such-python", "--json", "--quiet"]
    assert main(["bench", str(cache), *SMALL_OPTIONS, "--compare", peers, *arguments]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [document["failed"][0]["peer"], document["missing"][0]["peer"]] == ["ik_llama.cpp", "openvino"]
    assert_documented("bench --compare", document)


def test_a_peer_that_fails_is_exit_code_1(cache, quick, llamacpp, capsys):
    folder, _ = llamacpp
    program(folder / "llama-bench", "import sys; sys.exit(3)")
    assert main(["bench", str(cache), *SMALL_OPTIONS, "--compare", f"llama.cpp={folder}"]) == 1
    assert "llama.cpp failed: " in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--compare", "vllm"], "'vllm' is none of llama.cpp, ik_llama.cpp, openvino, onnxruntime"),
    (["--compare", "openvino,openvino=x"], "openvino is named twice"),
    (["--compare", "llama.cpp", "--activations", "float32"], "no other runtime here computes so; found float32"),
])
def test_wrong_usage(cache, capsys, arguments, message):
    assert main(["bench", str(cache), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_processors_for_threads():
    allowed = available_processors()
    assert processors_for(1)[0] in allowed
    assert processors_for(len(allowed) + 5) == allowed

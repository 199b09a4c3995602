"""The hub: only what is needed, resumed, checked, and one error whatever the other side does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints_for_tests import tiny_llama
from hub_for_tests import COMMIT, Hub, serving

from kumquant.cli import main
from kumquant.convert import convert
from kumquant.errors import CheckpointError, RequestError
from kumquant.hub import download, local_folder
from kumquant.models import TensorCache

WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b'{"a": 1}', "README.md": b"read me",
         "pytorch_model.bin": b"torch", "onnx/model.onnx": b"onnx"}


class Recorder:
    def __init__(self):
        self.total = self.done = 0

    def start(self, total_bytes, what):
        self.total = total_bytes

    def advance(self, n, note=""):
        self.done += n

    def finish(self):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Starts a hub that the environment points to: hub(files, **behavior)."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    running = []

    def start(files=FILES, **behavior):
        context = serving(Hub(dict(files), **{"large": ("model.safetensors",), **behavior}))
        running.append(context)
        served = context.__enter__()
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        return served

    yield start
    for context in running:
        context.__exit__(None, None, None)


def no_weights_left(tmp_path):
    """Nothing that could be taken for a file of the model."""
    return [path for path in tmp_path.rglob("model.safetensors") if path.is_file()] == []


def test_only_the_files_that_are_needed_and_each_once(hub):
    served, progress = hub(), Recorder()
    folder = download("org/model", progress=progress)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS and COMMIT in str(folder)
    assert progress.done == progress.total == len(WEIGHTS) + 2 + 8
    assert download("org/model@v1") == folder
    assert [served.fetched(name) for name in FILES] == [1, 1, 1, 0, 0, 0]


def test_a_folder_of_ones_own(hub, tmp_path):
    hub()
    folder = download("org/model", tmp_path / "here")
    assert folder == tmp_path / "here" and (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_the_files_of_an_index_and_no_others(hub):
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(),
             "model-1.safetensors": b"one", "model-2.safetensors": b"two", "consolidated.safetensors": b"all"}
    hub(files)
    names = {path.name for path in download("org/model").iterdir()}
    assert names == files.keys() - {"consolidated.safetensors"}


def test_a_cache_with_its_shards(hub):
    manifest = {"records": [{"dataPath": "params_shard_0.bin"}]}
    files = {"mlc-chat-config.json": b"{}", "tensor-cache.json": json.dumps(manifest).encode(),
             "params_shard_0.bin": b"zero", "params_shard_1.bin": b"of another mode"}
    hub(files)
    assert {path.name for path in download("org/model", wanted="cache").iterdir()} == \
        files.keys() - {"params_shard_1.bin"}


def test_what_is_asked_for_is_looked_for_before_gigabytes_come(hub):
    served = hub()
    with pytest.raises(CheckpointError, match=r"no tensor cache on the hub.*\n.*kumquant convert org/model"):
        download("org/model", wanted="cache")
    assert not any("/resolve/" in path for _, path, *_ in served.requests)
    hub({"README.md": b""})
    with pytest.raises(CheckpointError, match=r"no weights that could be converted; found README\.md"):
        download("org/model")
    hub({"a.Q4_0.gguf": b"", "a.Q8_0.gguf": b""})
    with pytest.raises(CheckpointError, match="several GGUF files"):
        download("org/model")


def test_a_connection_that_is_cut_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # 10 MB: longer than this file
    served = hub(cut_after={"model.safetensors": 300_000})
    folder = download("org/model")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [start for method, path, start, _ in served.requests
              if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_an_interrupted_download_is_continued_by_the_next(hub, tmp_path):
    served = hub(cut_after={"model.safetensors": 0})
    with pytest.raises(CheckpointError, match=r"org/model: model\.safetensors: cannot be downloaded"):
        download("org/model", tmp_path / "here")
    assert not (tmp_path / "here" / "config.json").exists()  # what makes it look complete comes last
    assert no_weights_left(tmp_path)
    served.cut_after.clear()
    assert (download("org/model", tmp_path / "here") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("lie", [-5, 5])
def test_a_hub_that_lies_about_a_length(hub, tmp_path, lie):
    hub(lies={"model.safetensors": len(WEIGHTS) + lie})
    with pytest.raises(CheckpointError, match=r"org/model: model\.safetensors: cannot be downloaded"):
        download("org/model")
    assert no_weights_left(tmp_path)


@pytest.mark.parametrize("is_terse", [False, True])
@pytest.mark.parametrize(("name", "other"), [("model.safetensors", WEIGHTS[::-1]), ("tokenizer.json", b'{"a": 2}')])
def test_other_bytes_than_the_hub_describes_are_removed(hub, tmp_path, name, other, is_terse):
    hub(swapped={name: other}, is_terse=is_terse)
    with pytest.raises(CheckpointError, match=r"describes; it was removed; found (sha256|git hash)"):
        download("org/model")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == other]


def test_a_redirect_to_another_host_is_followed_without_the_token_and_checked(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(dict(FILES), swapped={"model.safetensors": b"x" * len(WEIGHTS)})) as other:
        served = hub(elsewhere=other.address.replace("127.0.0.1", "localhost"))
        with pytest.raises(CheckpointError, match="not the one the hub describes"):
            download("org/model")
        assert no_weights_left(tmp_path)
        assert {auth for *_, auth in served.requests} == {"Bearer hf_secret"}
        assert other.requests and {auth for *_, auth in other.requests} == {None}
        other.swapped.clear()
        assert (download("org/model") / "model.safetensors").read_bytes() == WEIGHTS
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another-cache"))
    hub(elsewhere="http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be downloaded"):
        download("org/model", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ({"status": 404, "error_code": "RepoNotFound"}, "no such folder, and no such model on the hub"),
        ({"status": 401, "error_code": "RepoNotFound"}, r"private.*\n.*HF_TOKEN"),
        ({"status": 401}, "no such model|the hub refused"),
        ({"status": 403, "error_code": "GatedRepo"}, "accept the model's terms"),
        ({"repository": "org/renamed"}, "no such model"),
    ],
)
def test_refusals(hub, behavior, message):
    hub(**behavior)
    with pytest.raises(CheckpointError, match=message):
        local_folder("org/model")


def test_unknown_revisions_and_names_that_are_none(hub):
    hub()
    with pytest.raises(CheckpointError, match="no such revision"):
        download("org/model@v7")
    with pytest.raises(RequestError, match="not the name of a model"):
        download("../etc/passwd")


def test_without_a_network(hub, monkeypatch, tmp_path):
    hub()
    folder = download("org/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_folder("org/model") == local_folder("org/model@main") == folder
    with pytest.raises(CheckpointError, match=r"not downloaded yet.*HF_HUB_OFFLINE"):
        local_folder("org/other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        local_folder("org/model")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(CheckpointError, match="the hub cannot be asked"):
        download("org/other")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", 7, [], {"a": 1}])
def test_an_index_cannot_lead_elsewhere(hub, file):
    hub({"config.json": b"{}", "model.safetensors.index.json": json.dumps({"weight_map": {"a": file}}).encode()})
    with pytest.raises(CheckpointError, match="outside the repository"):
        download("org/model")


def test_a_folder_wins(hub, tmp_path, monkeypatch):
    served = hub()
    monkeypatch.chdir(tmp_path)
    Path("org/model").mkdir(parents=True)
    assert local_folder("org/model") == Path("org/model")
    assert local_folder("nothing-here") == Path("nothing-here") and served.requests == []


def test_convert_takes_a_name(hub, tmp_path):
    folder = tiny_llama(tmp_path / "tiny")
    hub({path.name: path.read_bytes() for path in folder.iterdir()})
    convert("org/model", tmp_path / "from-hub", "q4f16_1")
    convert(folder, tmp_path / "from-folder", "q4f16_1")
    for path in (tmp_path / "from-folder").iterdir():
        assert (tmp_path / "from-hub" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("behavior", [
    {"cut_after": {"model.safetensors": 10}}, {"lies": {"model.safetensors": 10}}, {"status": 500},
    {"swapped": {"config.json": b"[]"}}, {"elsewhere": "http://127.0.0.1:9"},
])
def test_a_conversion_that_gets_no_source_writes_nothing(hub, tmp_path, behavior):
    folder = tiny_llama(tmp_path / "tiny")
    hub({path.name: path.read_bytes() for path in folder.iterdir()}, **behavior)
    with pytest.raises(CheckpointError, match="org/model"):
        convert("org/model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(hub, tmp_path, capsys):
    """download prints the folder; every verb that takes a folder takes the name."""
    convert(tiny_llama(tmp_path / "tiny"), tmp_path / "cache", "q4f16_1")
    served = hub({path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()})
    assert main(["verify", "org/model", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("ok: 1 shard")
    assert main(["inspect", "org/model", "--summary", "--quiet"]) == 0
    assert main(["evaluate", "org/model", str(tmp_path / "none.txt"), "--quiet"]) == 2
    assert "none.txt" in capsys.readouterr().err
    assert main(["download", "org/model", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "org/model" and Path(document["folder"], "tensor-cache.json").is_file()
    assert served.fetched("params_shard_0.bin") == 1
    assert TensorCache.open("org/model").verify().shards == 1
    served.status = 404
    assert main(["chat", "org/unknown", "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("kumquant: error: org/unknown: ")

"""What bench measures and in which order; never how fast."""

import pytest
from checkpoints_for_tests import tiny_llama

import kumquant
from kumquant.bench import BenchSettings, diagnose, run, run_bench
from kumquant.errors import RequestError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    kumquant.convert(tiny_llama(folder / "source"), folder / "cache")
    return folder / "cache"


def shapes(results):
    return [(one.test, one.tokens, one.context, one.batch) for one in results]


def test_the_contracts_tests_by_default():
    planned = run.planned_workloads(BenchSettings(), 2048)
    assert shapes(planned) == [
        ("prefill", 512, 0, 1), ("decode", 64, 0, 1), ("decode", 64, 512, 1), ("decode", 64, 64, 8)]


def test_every_context_at_batch_1_and_every_batch_once():
    planned = run.planned_workloads(BenchSettings(16, 4, (0, 8, 32), (1, 2, 4)), 2048)
    assert shapes(planned) == [
        ("prefill", 16, 0, 1), ("decode", 4, 0, 1), ("decode", 4, 8, 1), ("decode", 4, 32, 1),
        ("decode", 4, 64, 2), ("decode", 4, 64, 4)]


def test_defaults_shrink_to_the_context_what_is_asked_for_does_not():
    assert shapes(run.planned_workloads(BenchSettings(), 128)) == [
        ("prefill", 128, 0, 1), ("decode", 64, 0, 1), ("decode", 64, 64, 1), ("decode", 64, 64, 8)]
    with pytest.raises(RequestError, match="found 129 tokens; expected at most 128"):
        run.planned_workloads(BenchSettings(prefill=129), 128)


def test_rounds_are_interleaved_and_memory_is_read_before_the_large_tests(cache, monkeypatch):
    order = []

    class Runner(run._Runner):
        def run(self, test):
            order.append((test.test, test.context, test.batch))
            return float(len(order))

    def peak():
        order.append("memory")
        return 1

    monkeypatch.setattr(run, "_Runner", Runner)
    monkeypatch.setattr(run, "peak_rss_bytes", peak)
    report = run_bench(cache, BenchSettings(8, 4, (0, 16), (1, 2), rounds=2), threads=1)
    small = [("prefill", 0, 1), ("decode", 0, 1), ("decode", 16, 1)]
    assert order == [*small, *small, *small, "memory", ("decode", 64, 2), ("decode", 64, 2)]
    prefill = report.results[0]  # the first three runs, 1 to 3, only warm up
    assert (prefill.min, prefill.tokens_per_s, prefill.max) == (4.0, 5.5, 7.0)


def test_a_report_is_whole(cache):
    report = run_bench(cache, BenchSettings(8, 4, (0, 16), (1, 2), rounds=3), threads=1)
    assert shapes(report.results) == [
        ("prefill", 8, 0, 1), ("decode", 4, 0, 1), ("decode", 4, 16, 1), ("decode", 4, 64, 2)]
    assert all(0 < one.min <= one.tokens_per_s <= one.max for one in report.results)
    assert 0 < report.open_s < report.first_token_s
    assert report.peak_rss_bytes > 2**20 and report.threads == 1 and report.cpu and report.isa


def test_diagnosis(monkeypatch):
    monkeypatch.setattr("kumquant.bench.diagnosis.BANDWIDTH_BUFFER", 2**20)
    found = diagnose(threads=2)
    assert [one.threads for one in found.bandwidth] == [1, 2]
    assert found.processors >= found.physical_cores >= 1 and found.memory_bytes >= found.available_bytes > 0
    for one in found.expected:
        assert one.tokens_per_s == found.bandwidth[-1].bytes_per_s / one.nbytes

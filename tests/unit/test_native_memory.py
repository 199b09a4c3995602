"""A step that finds no memory is an error: threads of the pool need none, and the model goes on afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_native_runtime import PLAIN, QUANTIZED, SPEC, TOKENS, make_spec, make_tensors

from kumquant import _native
from kumquant.models.spec import ExpertSpec
from kumquant.runtime import Model, SamplerConfig, StepInput

EXPERT_ROLES = ("router", "experts_gate_up", "experts_down", "shared_gate_up", "shared_down")
EXPERTS = make_spec(
    experts=ExpertSpec(count=5, per_token=2, inner_size=40, shared_size=24, normalize=True),
    tensors={role: name for role, name in SPEC.tensors.items() if not role.startswith(("gate_up", "down"))}
    | {role: "layers.{i}." + role for role in EXPERT_ROLES},
)


@pytest.mark.parametrize(("spec", "tensors"), [
    (SPEC, QUANTIZED), (SPEC, PLAIN), (EXPERTS, make_tensors(EXPERTS, quantized=False)),
], ids=["quantized", "plain", "experts"])
def test_no_buffer_grows_while_the_pool_works(spec, tensors):
    before = _native.kernels.late_growths()
    model = Model.from_arrays(spec, tensors, threads=3)
    pool = model.new_pool(20)
    sequences = []
    for count in (1, 3, 40):
        sequence = model.new_sequence(pool, SamplerConfig(temperature=1.0, seed=count), TOKENS[:count])
        sequence.add_pages(pool.allocate(5))
        sequences.append(sequence)
    model.step(pool, [StepInput(sequences[0], TOKENS[:1], "sample")])
    model.step(pool, [StepInput(one, TOKENS[:count], "sample") for one, count in zip(sequences, (1, 3, 40))])
    model.step(pool, [StepInput(sequences[2], TOKENS[:200], "logits")])
    model.step(pool, [StepInput(one, TOKENS[:1], "last") for one in sequences])
    assert _native.kernels.late_growths() == before


# Less and less address space: whatever fails, in whichever thread, the process lives and the next step is right.
SHORTAGES = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_native_runtime import TOKENS, make_spec, make_tensors
from kumquant.errors import CapacityError
from kumquant.runtime import Model, SamplerConfig, StepInput

spec = make_spec(vocab_size=40_000, hidden_size=32, intermediate_size=3000)
tensors = make_tensors(spec, quantized=True)
no_limit = resource.getrlimit(resource.RLIMIT_AS)

def in_use():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def step(model, pool, spare):
    sequence = model.new_sequence(pool, SamplerConfig(temperature=1.0, seed=1), TOKENS)
    sequence.add_pages(pool.allocate(5))
    inputs = [StepInput(sequence, TOKENS, "sample")]
    if spare is not None:
        resource.setrlimit(resource.RLIMIT_AS, (in_use() + spare, no_limit[1]))
    try:
        return model.step(pool, inputs)[0].token_id
    except (CapacityError, MemoryError):
        return -1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, no_limit)
        sequence.close()

model = Model.from_arrays(spec, tensors, threads=1)
want = step(model, model.new_pool(5), None)
outcomes = []
for spare in range(0, 16 << 20, 512 << 10):
    model = Model.from_arrays(spec, tensors, threads=3)
    pool = model.new_pool(5)
    outcomes.append(step(model, pool, spare))
    assert step(model, pool, None) == want, spare
print(sorted(set(outcomes)) == sorted([-1, want]), outcomes)
"""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="skipped: AddressSanitizer needs memory")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is limited as Linux does it")
def test_a_step_without_memory_is_an_error_and_the_next_one_is_right():
    script = SHORTAGES.format(tests=str(Path(__file__).parent))
    # Freed memory goes back to the system, so that the limit decides.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "32768",
                                "MALLOC_ARENA_MAX": "1"}
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
                              env=environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("True"), finished.stdout

"""A loaded model: weights in panels, and the one native call that runs a step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import _native
from ..errors import CapacityError, Error, RequestError, TensorCacheError
from ..models import DecoderSpec, TensorCache, depends_on_length, inverse_frequencies
from ..processors import MAX_THREADS, available_processors
from ..schemes import Scheme
from .loader import Loader
from .pages import PAGE_TOKENS, PagePool, pages_for
from .panels import PanelsFile, UnusablePanelsError, find_panels, notice_unused
from .sampler import SamplerConfig
from .sequence import Sequence

Activations = Literal["int8", "float32"]
KvDtype = Literal["auto", "float32", "float16", "int8"]
KV_DTYPES: tuple[KvDtype, ...] = ("auto", "float32", "float16", "int8")
Output = Literal["none", "sample", "last", "logits", "hidden"]
OUTPUT_CODES = {"none": 0, "sample": 1, "last": 2, "logits": 3, "hidden": 4}
NATIVE_STEP_ERRORS = (IndexError, ValueError, MemoryError, RuntimeError)
LOGITS_CHUNK = 512
SAME_IN_NATIVE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "norm_eps", "activation", "attention_scale", "qk_norm", "qk_norm_over_all", "norm_after_residual",
    "parallel_block", "rope_interleaved", "causal", "embed_scale", "residual_scale", "logit_scale",
    "attention_cap", "final_cap", "clip_qkv",
)  # fmt: skip


class StepInput(NamedTuple):  # one of each for every token: a dataclass takes twice as long to make
    """New tokens of one sequence.

    output: "none" (a prompt's earlier chunk), "sample" (one token from the last position), "last" (the last
    position's logits), "logits" (every new position's) or "hidden" (their final hidden states, normed).
    """

    sequence: Sequence
    token_ids: SequenceOf[int]
    output: Output


class StepOutput(NamedTuple):
    """What an input asked for.

    token_id and logprob of a sampled token, top: (token id, logprob) of the likeliest; or logits, float32
    (rows, vocab_size), or hidden states (rows, hidden_size).
    """

    token_id: int = -1
    logprob: float = 0.0
    top: SequenceOf[tuple[int, float]] = ()
    logits: np.ndarray | None = None


NO_OUTPUT = StepOutput()


class Model:
    """A model in the native core.

    threads: default all cores this process may use. isa: one of ``_native.isa_list()``; default the environment's
    KUMQUANT_ISA, else the best one. Results do not depend on either. panels: use the panels file that ``pack``
    made, if there is one.
    """

    page_tokens = PAGE_TOKENS
    panels_path: Path | None = None  # the panels file in use

    def __init__(self, cache: TensorCache, threads: int | None = None, isa: str | None = None, *,
                 panels: bool = True) -> None:
        self._cache = cache  # an untied embedding stays mapped
        found = find_panels(cache) if panels else None
        if found is None or not self._open_panels(found, threads, isa):
            self._build(cache.spec, cache, cache.scheme, threads, isa, release=True)
        cache.release_all()  # small tensors made their neighbors resident

    def _open_panels(self, file: PanelsFile, threads: int | None, isa: str | None) -> bool:
        """Whether the model could be built with the panels in ``file``, which is closed."""
        cache = self._cache
        with file:
            try:
                self._build(cache.spec, cache, cache.scheme, threads, isa, release=True, panels=file)
            except (UnusablePanelsError, RuntimeError) as reason:  # RuntimeError: the native core met the file's end
                notice_unused(file.path, cache, reason)
                return False
        self.panels_path = file.path
        return True

    @classmethod
    def from_arrays(cls, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], threads: int | None = None,
                    isa: str | None = None, scheme: Scheme | None = None) -> Model:
        """A model from arrays by cache tensor name: plain floats, or codes and scales in ``scheme``."""
        self = cls.__new__(cls)
        self._build(spec, tensors, scheme, threads, isa, release=False)
        return self

    def _build(self, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], scheme: Scheme | None,
               threads: int | None, isa: str | None, release: bool, panels: PanelsFile | None = None) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise RequestError("value out of range", where="threads", found=threads, expected=f"1 to {MAX_THREADS}")
        self.spec = spec
        self._process = os.getpid()
        threads = threads or len(available_processors())
        try:
            self.native: Any = _native.Model(native_spec(spec), threads, isa or "")
        except RuntimeError as error:  # std::system_error of a thread that could not be started
            raise CapacityError(f"the system gives no {threads} threads ({error})", where="threads",
                                hint="Ask for fewer threads.") from None
        except ValueError as error:
            raise RequestError(str(error), hint="Unset KUMQUANT_ISA or name a usable instruction set.") from None
        for index, rope in enumerate(spec.ropes):
            self.native.set_rope(index, *inverse_frequencies(rope, 0))
        if panels is not None:
            panels.give_to(self.native)
        Loader(self.native, spec, tensors, scheme, release, packed=panels is not None).load_all()
        if panels is not None:
            panels.check_taken(self.native)
        self._rope_depends_on_length = spec.rope is not None and depends_on_length(spec.rope)

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def context_length(self) -> int:
        return self.spec.context_length

    @property
    def threads(self) -> int:
        return int(self.native.threads)

    @property
    def isa(self) -> str:
        return str(self.native.isa)

    def pages_for(self, num_tokens: int) -> int:
        return pages_for(num_tokens)

    def new_pool(self, num_pages: int, activations: Activations = "int8", kv_dtype: KvDtype = "auto") -> PagePool:
        """A pool for sequences of this model.

        kv_dtype: of keys and values. "auto": float16 where layers compute with int8 activations, else float32. "int8":
        codes with a scale per token and head, in half of float16's memory.
        """
        if activations not in ("int8", "float32"):
            raise RequestError(
                "unknown activations", where="activations", found=activations, expected='"int8" or "float32"'
            )
        check_kv_dtype(kv_dtype)
        if kv_dtype == "auto":
            kv_dtype = "float16" if activations == "int8" and self.native.has_quantized_layers else "float32"
        return PagePool(_native.PagePool(self.native, num_pages, kv_dtype), activations, kv_dtype)

    def new_sequence(
        self, pool: PagePool, sampler: SamplerConfig | None = None, prompt_ids: SequenceOf[int] = (),
        end_ids: Iterable[int] = (),
    ) -> Sequence:
        return Sequence(pool, sampler, prompt_ids, end_ids)

    def step(self, pool: PagePool, inputs: SequenceOf[StepInput]) -> list[StepOutput]:
        """Runs all inputs in one native call. Every sequence appears once and has at least one new token.

        Raises CapacityError when a sequence lacks pages or the system memory, RequestError for a token outside the
        vocabulary and for logits of an encoder, and in a process that was forked from the one that loaded the model:
        its threads are not there. After an error the sequences may have advanced in part: close or rewind them.
        """
        self._check_process()
        if self.spec.is_encoder and any(item.output not in ("hidden", "none") for item in inputs):
            raise RequestError("an encoder gives no logits", hint="Use embed (kumquant embed), or hidden_states.")
        if self._rope_depends_on_length:
            self._set_ropes(inputs)
        # As little as possible: weights have passed through the caches, so all of this comes from memory.
        token_ids = [list(item.token_ids) for item in inputs]
        try:
            choices, logits = self.native.step(
                pool.native, [item.sequence.native for item in inputs], token_ids,
                [OUTPUT_CODES[item.output] for item in inputs], pool.activations == "int8",
            )
        except NATIVE_STEP_ERRORS as error:
            raise _step_error(error, inputs) from None
        if logits is None:
            return [NO_OUTPUT if choice is None else StepOutput(*choice) for choice in choices]
        return [_step_output(item.output, choice, logits) for item, choice in zip(inputs, choices, strict=True)]

    def decode(self, pool: PagePool, inputs: SequenceOf[StepInput], count: int) -> list[list[StepOutput]]:
        """Runs ``count`` steps or fewer, each feeding what the one before sampled, in one native call.

        inputs: as for ``step``, each with one token and to sample. Ends early after a step in which a sequence sampled
        one of its end_ids, and after the first where a rope depends on the length. Returns what each input sampled, as
        many for every one. Needs pages for all tokens. Raises as ``step``.
        """
        if self._rope_depends_on_length or self.spec.is_encoder:
            return [[output] for output in self.step(pool, inputs)]
        self._check_process()
        try:
            chosen = self.native.decode(
                pool.native, [item.sequence.native for item in inputs], [item.token_ids[0] for item in inputs], count,
                pool.activations == "int8",
            )
        except NATIVE_STEP_ERRORS as error:
            raise _step_error(error, inputs) from None
        return [[StepOutput(*choice) for choice in its] for its in chosen]

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RequestError("this model was loaded before the process was forked", found=f"process {os.getpid()}",
                               expected=f"process {self._process}", hint="Open the folder in the process that uses it, "
                               'or let multiprocessing "spawn" its processes.')

    def _set_ropes(self, inputs: SequenceOf[StepInput]) -> None:
        assert self.spec.rope is not None
        for sequence, new_ids, _ in inputs:
            length = max(sequence.length + len(new_ids), sequence.rope_length)
            sequence.native.set_rope(*inverse_frequencies(self.spec.rope, length))

    def logits(self, token_ids: SequenceOf[int], activations: Activations = "int8",
               kv_dtype: KvDtype = "auto") -> np.ndarray:
        """Logits at every position of one sequence from position 0: float32 (tokens, vocab_size)."""
        result = np.empty((len(token_ids), self.vocab_size), np.float32)
        for start, part in self._run_alone(token_ids, activations, kv_dtype, "logits", LOGITS_CHUNK):
            result[start : start + len(part)] = part
        return result

    def hidden_states(self, token_ids: SequenceOf[int], activations: Activations = "int8",
                      kv_dtype: KvDtype = "auto") -> np.ndarray:
        """Final hidden states, normed, of one sequence from position 0: float32 (tokens, hidden_size)."""
        result = np.empty((len(token_ids), self.spec.hidden_size), np.float32)
        chunk = LOGITS_CHUNK if self.spec.causal else len(token_ids)
        for start, part in self._run_alone(token_ids, activations, kv_dtype, "hidden", chunk):
            result[start : start + len(part)] = part
        return result

    def _run_alone(self, token_ids: SequenceOf[int], activations: Activations, kv_dtype: KvDtype, output: Output,
                   chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        if not len(token_ids):
            raise RequestError("no tokens", where="token_ids", hint="Pass at least one token id.")
        pool = self.new_pool(pages_for(len(token_ids)), activations, kv_dtype)
        sequence = self.new_sequence(pool, None, token_ids)
        sequence.add_pages(pool.allocate(pool.num_pages))
        for start in range(0, len(token_ids), chunk):
            part = self.step(pool, [StepInput(sequence, token_ids[start : start + chunk], output)])[0].logits
            assert part is not None
            yield start, part


def _step_output(output: Output, choice: Any, logits: np.ndarray) -> StepOutput:
    if output == "sample":
        return StepOutput(*choice)
    if choice is None:
        return NO_OUTPUT
    first, rows = choice
    return StepOutput(logits=logits[first : first + rows])


def _step_error(error: Exception, inputs: SequenceOf[StepInput]) -> Error:
    """What the native core raised in a step, as the runtime's own error."""
    if isinstance(error, (IndexError, ValueError)):
        where = "token ids" if isinstance(error, IndexError) else None
        return lacks_pages(inputs) or RequestError(str(error), where=where)
    if isinstance(error, MemoryError):
        return CapacityError("the system has no memory for a step of this size",
                             found=f"{sum(len(item.token_ids) for item in inputs)} tokens of {len(inputs)} sequences",
                             hint="Run fewer or shorter sequences at once.")
    return TensorCacheError(str(error), hint="The cache was changed while it was open. Open it again.")


def lacks_pages(inputs: SequenceOf[StepInput]) -> CapacityError | None:
    """The error of the first sequence that has no pages for its new tokens."""
    for sequence, new_ids, _ in inputs:
        needed = pages_for(sequence.length + len(new_ids))
        if needed > sequence.num_pages:
            return CapacityError("a sequence lacks pages", found=sequence.num_pages, expected=needed)
    return None


def check_kv_dtype(kv_dtype: object) -> None:
    """Raises RequestError for a type that keys and values cannot have."""
    if kv_dtype not in KV_DTYPES:
        raise RequestError("unknown type of keys and values", where="kv_dtype", found=repr(kv_dtype),
                           expected=", ".join(KV_DTYPES))


def native_spec(spec: DecoderSpec) -> dict[str, Any]:
    """The fields the native core reads."""
    experts = spec.experts
    return {
        **{name: getattr(spec, name) for name in SAME_IN_NATIVE},
        "layer_norm": spec.norm == "layer",
        "rope_dim": spec.rope.dim if spec.rope is not None else 0,
        "sliding_window": list(spec.sliding_window),
        "layer_rope": list(spec.rope_of_layer),
        "num_experts": experts.count if experts else 0,
        "experts_per_token": experts.per_token if experts else 0,
        "expert_size": experts.inner_size if experts else 0,
        "shared_expert_size": experts.shared_size if experts else 0,
        "normalize_experts": experts.normalize if experts else False,
    }

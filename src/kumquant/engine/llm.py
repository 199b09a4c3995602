"""LLM: a model folder, ready to be asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np

from ..chat import ChatTemplate, Message, stop_token_ids
from ..errors import CheckpointError, RequestError
from ..models import TensorCache, load_pooling
from ..processors import default_threads
from ..progress import NO_PROGRESS, Progress
from ..runtime import KvDtype, Model, check_kv_dtype
from ..tokenizer import TOKENIZER_NAME, StreamDecoder, Tokenizer, has_tokenizer
from .defaults import default_params
from .embedding import Embedder
from .engine import Engine, check_prompt
from .memory import Activations, kv_pages
from .prompts import Prompt, one_prompt, split_prompts
from .request import Generation, Request
from .sampling_params import SamplingParams


class LLM:
    """A model of a cache folder, with a tokenizer if the folder has one.

    threads: default: the physical cores this process may use; results do not depend on it. activations:
    "int8" (fast) or "float32" (the accuracy reference); plain layers compute with float32 activations in
    either setting. context_length: less than the model's own, to save memory. kv_dtype: of keys and values: "auto"
    (float16, or float32 where layers compute with float32 activations), "float32", "float16" or "int8" (half the
    memory of float16; docs/engine.md says what it costs). panels: use the panels file that ``kumquant.pack`` made, if
    there is one. Raises TensorCacheError for a damaged cache, UnsupportedError for a model Kumquant cannot run,
    RequestError for a bad argument.

    Methods may be called from several threads; they take turns.
    """

    def __init__(self, folder: str | Path, threads: int | None = None, activations: Activations = "int8", *,
                 context_length: int | None = None, kv_dtype: KvDtype = "auto", panels: bool = True) -> None:
        self._check_options(threads, activations, context_length)
        check_kv_dtype(kv_dtype)
        cache = TensorCache.open(folder)
        self.folder = cache.folder
        self.activations = activations
        self.kv_dtype = kv_dtype
        self._lock = threading.RLock()
        self._model: Model | None = Model(cache, threads=threads or default_threads(), panels=panels)
        self._context_length = self._model.context_length if context_length is None else context_length
        if self._context_length > self._model.context_length:
            raise RequestError("more than the model's own", where="context_length", found=context_length,
                               expected=f"at most {self._model.context_length}")

    # The engine, the tokenizer and the template are made on first use: opening a folder stays a matter of
    # milliseconds, and a folder without them still answers what needs none.

    @property
    def model(self) -> Model:
        """The loaded model. Raises RequestError after ``close``."""
        if self._model is None:
            raise RequestError("this LLM is closed", where=self.folder, hint="Open the folder again.")
        return self._model

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The folder's tokenizer; None when it has no tokenizer.json."""
        return Tokenizer.open(self.folder) if has_tokenizer(self.folder) else None

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The folder's chat template. Raises an Error that says so when it has none."""
        return ChatTemplate.open(self.folder)

    @cached_property
    def default_params(self) -> SamplingParams:
        """The sampling that the model's own files recommend; used where a caller passes no parameters."""
        return default_params(self.folder)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and output together, at most."""
        if self.model.spec.is_encoder:
            return self._context_length
        with self._lock:  # the first to ask makes the engine
            return self._engine.context_length

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[Generation]:
        """Continue each prompt; no chat template.

        prompts: text or token ids, one or many (a list of integers is one prompt); text is encoded with the
        special tokens the tokenizer adds (BOS). params: for all prompts, or one for each; default
        ``default_params``. Returns one Generation per prompt, in order. Raises RequestError for a prompt that
        is empty or too long.
        """
        split = split_prompts(prompts)
        each = self._params_for(params, len(split))
        with self._lock:
            requests: list[Request] = []
            try:
                for prompt, its_params in zip(split, each):
                    requests.append(self._engine.add(self._encode(prompt, its_params), its_params))
                for request in requests:
                    while not request.is_finished:
                        self._engine.step()
            finally:  # after an error or Ctrl-C, or several, none may stay behind
                for request in requests:
                    self._engine.abandon(request)
                for request in requests:
                    self._engine.abort(request)
        return [request.result() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> TextStream:
        """``generate`` for one prompt, its text piece by piece."""
        only = one_prompt(prompt)
        (its_params,) = self._params_for(params, 1)
        return self._stream(self._encode(only, its_params), its_params)

    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *,
             stream: Literal[False] = False) -> Generation: ...
    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *,
             stream: Literal[True]) -> TextStream: ...
    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, *,
             stream: bool) -> Generation | TextStream: ...

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None,
             stream: bool = False) -> Generation | TextStream:
        """Answer a dialog, put into the model's own chat template.

        messages: {"role": …, "content": …}, oldest first. Returns a Generation, or with ``stream`` an
        iterator of the answer's text in pieces. What the KV cache still holds of an earlier turn is not
        computed again.
        """
        self._require_decoder("answers")
        (its_params,) = self._params_for(params, 1)
        template = self.chat_template
        token_ids = self._checked_tokens(template.encode(messages, self._require_tokenizer("chat")))
        stop = (*its_params.stop_strings, *template.stop_strings)
        pieces = self._stream(token_ids, replace(its_params, stop=stop))
        return pieces if stream else pieces.run()

    def logits(self, token_ids: Sequence[int], activations: Activations = "int8") -> np.ndarray:
        """Logits of the next token at every position: float32 (tokens, vocabulary).

        activations: "int8" or "float32". Raises RequestError for no tokens, too many, or ids outside the
        vocabulary.
        """
        checked = _checked_ids(token_ids)
        self._require_decoder("logits")
        with self._lock:
            check_prompt(checked, self.model.context_length, self.model.vocab_size)
            return self.model.logits(checked, activations, self.kv_dtype)

    def hidden_states(self, token_ids: Sequence[int], activations: Activations | None = None) -> np.ndarray:
        """The last hidden state at every position, after the final norm: float32 (tokens, hidden size).

        activations: default: this LLM's own. Raises as ``logits``.
        """
        checked = _checked_ids(token_ids)
        with self._lock:
            check_prompt(checked, self.model.context_length, self.model.vocab_size)
            return self.model.hidden_states(checked, activations or self.activations, self.kv_dtype)

    def embed(self, texts: Prompt | Sequence[Prompt], normalize: bool | None = None, *,
              prompt_name: str | None = None, progress: Progress = NO_PROGRESS) -> np.ndarray:
        """One vector for each text, pooled as the model's makers chose: float32 (texts, dimensions).

        texts: text or token ids, one or many, as in ``generate``; text that is too long for the model is cut.
        normalize: to unit length; default: as the model's makers chose. prompt_name: which of the model's prompts
        goes before each text, where it has some. Raises RequestError for a model that is not meant for this.
        """
        split = split_prompts(texts)
        with self._lock:
            embedder = self.embedder
            return embedder.embed([embedder.encode(text, prompt_name) for text in split], normalize, progress)

    @cached_property
    def embedder(self) -> Embedder:
        """What ``embed`` works with. Raises RequestError for a model that is not meant for this."""
        pooling = load_pooling(self.folder)
        if pooling is None:
            raise RequestError("nothing says how hidden states become a vector: not an embedding model",
                               where=self.folder, expected='modules.json, or "embedding_metadata" in '
                               "mlc-chat-config.json", hint="hidden_states gives the states themselves.")
        return Embedder(self.model, pooling, self.tokenizer, max_length=self._context_length,
                        activations=self.activations, kv_dtype=self.kv_dtype)

    def close(self) -> None:
        """Free the model's memory. Later calls raise RequestError."""
        with self._lock:
            self.__dict__.pop("_engine", None)
            self.__dict__.pop("embedder", None)
            self._model = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @cached_property
    def _engine(self) -> Engine:
        self._require_decoder("text")
        return Engine(
            self.model, activations=self.activations, kv_dtype=self.kv_dtype,
            end_ids=frozenset(stop_token_ids(self.folder, self.tokenizer)),
            num_pages=kv_pages(self.model, self.activations, self._context_length, self.kv_dtype),
            context_length=self._context_length, new_decoder=self._new_decoder,
        )

    def _new_decoder(self) -> StreamDecoder | None:
        return None if self.tokenizer is None else StreamDecoder(self.tokenizer)

    def _stream(self, token_ids: list[int], params: SamplingParams) -> TextStream:
        with self._lock:
            return TextStream(self._engine, self._engine.add(token_ids, params), self._lock)

    def _encode(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        if not isinstance(prompt, str):
            if params.stop_strings:
                self._require_tokenizer("stop strings")
            return list(prompt)
        return self._checked_tokens(self._require_tokenizer("a text prompt").encode(prompt, add_special_tokens=True))

    def _checked_tokens(self, token_ids: list[int]) -> list[int]:
        """``token_ids`` of the tokenizer. Raises CheckpointError where the model does not have them."""
        last, size = max(token_ids, default=0), self.model.vocab_size
        if last >= size:
            raise CheckpointError("the tokenizer gives ids that the model does not have",
                                  where=self.folder / TOKENIZER_NAME, found=last, expected=f"0 to {size - 1}",
                                  hint="Copy the tokenizer files of this very model there.")
        return token_ids

    def _require_decoder(self, what: str) -> None:
        if self.model.spec.is_encoder:
            raise RequestError(f"an encoder, which gives no {what}", where=self.folder,
                               hint="Use embed (kumquant embed), or hidden_states.")

    def _require_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                f"{what} needs a tokenizer, and this folder has none", where=self.folder,
                expected="tokenizer.json", hint="Copy the model's tokenizer files there, or pass token ids.",
            )
        return self.tokenizer

    def _params_for(self, params: SamplingParams | Sequence[SamplingParams] | None,
                    count: int) -> list[SamplingParams]:
        if params is None:
            return [self.default_params] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        each: list[Any] = list(params) if isinstance(params, (list, tuple)) else [params] * count
        if len(each) != count or not all(isinstance(one, SamplingParams) for one in each):
            found = f"{len(each)} for {count} prompts" if len(each) != count else type(params).__name__
            raise RequestError("not one SamplingParams for all prompts or one for each", where="params", found=found)
        return each

    @staticmethod
    def _check_options(threads: Any, activations: Any, context_length: Any) -> None:
        if activations not in ("int8", "float32"):
            raise RequestError("unknown activations", where="activations", found=repr(activations),
                               expected="int8 or float32")
        for name, value in (("threads", threads), ("context_length", context_length)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError("value out of range", where=name, found=repr(value),
                                   expected="an integer, at least 1")


def _checked_ids(token_ids: Sequence[int]) -> list[int]:
    checked = one_prompt(token_ids)
    if isinstance(checked, str):
        raise RequestError("not token ids", where="token_ids", found="text", expected="a list of integers")
    return list(checked)


class TextStream(Iterator[str]):
    """The text of one generation as it comes.

    ``result`` has the whole, once the pieces are over or ``close`` is called.
    """

    def __init__(self, engine: Engine, request: Request, lock: threading.RLock) -> None:
        self._engine, self._request, self._lock = engine, request, lock

    def __next__(self) -> str:
        while True:
            with self._lock:
                piece = self._request.take_piece()
                if piece:
                    return piece
                if self._request.error is not None:
                    raise self._request.error
                if self._request.is_finished:
                    raise StopIteration
                self._engine.step()

    def close(self) -> None:
        """Stop here; what has come so far stays the result, with finish_reason "abort"."""
        with self._lock:
            self._engine.abort(self._request)

    def run(self) -> Generation:
        """The rest without pieces: the finished generation."""
        try:
            with self._lock:
                while not self._request.is_finished:
                    self._engine.step()
        finally:
            self.close()
        return self.result

    @property
    def result(self) -> Generation:
        """The generation so far decided; RequestError while it still runs, its own error if it could not go on."""
        if not self._request.is_finished:
            raise RequestError("the generation still runs", hint="Take all pieces, or close the stream.")
        return self._request.result()

    def __del__(self) -> None:
        # The garbage collector may come in the middle of a step. Half-made objects have no request.
        if hasattr(self, "_request"):
            self._engine.abandon(self._request)

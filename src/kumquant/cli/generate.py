"""Answer one prompt.

The prompt goes through the model's chat template, unless --raw continues it as it stands. Without --prompt,
or with "-", it is read from stdin. The text is printed as it comes; Ctrl-C ends it and keeps what is there.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..chat import Message
from ..engine import LLM, Generation, TextStream
from ..errors import RequestError
from .main import INTERRUPTED
from .options import add_activations, add_json, add_kv_dtype, add_model, add_threads
from .output import print_json
from .sampling import add_logprobs, add_sampling, sampling_params
from .streaming import remark_speed, show_pieces


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant generate DIR [--prompt TEXT] [options]"
    add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", default="-", help="the prompt; - or nothing: from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the prompt as it is")
    add_json(parser)
    add_logprobs(parser)
    add_threads(parser)
    add_activations(parser)
    add_kv_dtype(parser)
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    if args.raw and args.system is not None:
        raise RequestError("a system message needs the chat template", where="--system",
                           hint="Leave out --raw, or write the system message into the prompt.")
    if args.logprobs is not None and not args.json:
        raise RequestError("log probabilities come as JSON only", where="--logprobs", hint="Add --json.")
    prompt = _read_stdin() if args.prompt == "-" else args.prompt
    with LLM(args.model, threads=args.threads, activations=args.activations, kv_dtype=args.kv_dtype) as llm:
        stream = _start(llm, prompt, args)
        interrupted = show_pieces(stream, show=not args.json)
        result = stream.result
        if args.json:
            print_json(generation_json(result, llm))
    remark_speed(args, result)
    return INTERRUPTED if interrupted else 0


def generation_json(result: Generation, llm: LLM) -> dict[str, Any]:
    """A generation as docs/json.md describes it."""
    document: dict[str, Any] = {
        "text": result.text, "token_ids": result.token_ids, "finish_reason": result.finish_reason,
        "prompt_tokens": len(result.prompt_token_ids), "completion_tokens": len(result.token_ids),
        "prefill_s": result.prefill_s, "decode_s": result.decode_s, "tokens_per_s": result.tokens_per_s,
    }
    if result.logprobs is not None:
        document["logprobs"] = [
            {**_token_json(entry.token_id, entry.logprob, llm),
             "top": [_token_json(token_id, logprob, llm) for token_id, logprob in entry.top]}
            for entry in result.logprobs
        ]
    return document


def _token_json(token_id: int, logprob: float, llm: LLM) -> dict[str, Any]:
    text = "" if llm.tokenizer is None else llm.tokenizer.decode([token_id], skip_special_tokens=False)
    return {"token_id": token_id, "token": text, "logprob": logprob}


def _start(llm: LLM, prompt: str, args: argparse.Namespace) -> TextStream:
    params = sampling_params(args, llm.default_params)
    if args.raw:
        return llm.stream(prompt, params)
    messages: list[Message] = [] if args.system is None else [{"role": "system", "content": args.system}]
    return llm.chat([*messages, {"role": "user", "content": prompt}], params, stream=True)


def _read_stdin() -> str:
    if sys.stdin.isatty():
        print("Type the prompt; Ctrl-D ends it.", file=sys.stderr)
    text = sys.stdin.read()
    return text.removesuffix("\n")

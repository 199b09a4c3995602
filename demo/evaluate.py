"""Held-out accuracy of the demo model, in PyTorch: float32, bfloat16 and 4-bit weights, greedy decoding.

python demo/evaluate.py src/kumquant/demo_model --per-task 100
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from corpus import END_OF_TEXT_ID, IM_END_ID, prompt_ids
from generate_text import HELD_OUT_TASKS, generate, passes
from llama import Cache, Config, Llama, quantize_q4f16_1
from safetensors.torch import load_file
from tokenizers import Tokenizer

SAMPLES = [
    "Tell me a story about a fox and a lantern.", "Tell me a story about a dragon and a teapot.",
    "What is 27 + 15?",
    "Tom has 5 apples and gets 7 more. How many apples does Tom have?", "What is 83 - 47?", "Who are you?",
    "What is the opposite of hot?",
]  # fmt: skip


@torch.inference_mode()
def reply_all(
    model: Llama,
    tokenizer: Tokenizer,
    chats: list[list[dict[str, str]]],
    max_tokens: int,
    batch_size: int = 50,
) -> list[str]:
    """Greedy replies. Chats of similar length share a batch; shorter ones are padded on the left."""
    prompts = [prompt_ids(tokenizer, chat) for chat in chats]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(len(prompts[i]) for i in chosen)
        padding = torch.tensor([longest - len(prompts[i]) for i in chosen])[:, None]
        tokens = torch.tensor([[END_OF_TEXT_ID] * (longest - len(prompts[i])) + prompts[i] for i in chosen])
        finished = torch.zeros(len(chosen), dtype=torch.bool)
        cache: Cache = [None] * model.config.num_hidden_layers
        start = 0  # tokens before this one are in the cache
        for _ in range(max_tokens):
            columns, rows = torch.arange(tokens.shape[1]), torch.arange(start, tokens.shape[1])
            visible = (columns[None, :] <= rows[:, None]) & (columns[None, None, :] >= padding[:, :, None])
            mask = torch.zeros(visible.shape).masked_fill(~visible, -1e4)[:, None]
            hidden = model(tokens[:, start:], (rows[None] - padding).clamp(min=0), mask, cache)
            start = tokens.shape[1]
            chosen_next = model.head(hidden[:, -1]).argmax(-1)
            chosen_next[finished] = IM_END_ID
            tokens = torch.cat((tokens, chosen_next[:, None]), dim=1)
            finished |= (chosen_next == IM_END_ID) | (chosen_next == END_OF_TEXT_ID)
            if finished.all():
                break
        for row, i in enumerate(chosen):
            ids = tokens[row, longest:].tolist()
            stops = [n for n, token in enumerate(ids) if token in (IM_END_ID, END_OF_TEXT_ID)]
            replies[i] = tokenizer.decode(ids[: stops[0]] if stops else ids)
    return replies


def with_weights(model: Llama, dtype: str) -> Llama:
    """A copy with its weights rounded as `dtype` says: "float32" (none), "bfloat16" or "q4f16_1"."""
    result = copy.deepcopy(model).eval()
    for parameter in result.parameters():
        if dtype == "q4f16_1" and parameter.ndim == 2:
            parameter.data = quantize_q4f16_1(parameter.data)
        elif dtype != "float32":
            parameter.data = parameter.data.to(torch.bfloat16).float()
    return result


def accuracy(model: Llama, tokenizer: Tokenizer, task: str, count: int, seed: int) -> tuple[float, list[str]]:
    """Share of right replies on held-out problems of one task, and up to three wrong replies."""
    conversations = list(generate("heldout", seed, count, [task]))
    replies = reply_all(model, tokenizer, [c.messages[:-1] for c in conversations], 220 if task == "story" else 64)
    right = [passes(c.check, c.expected, reply) for c, reply in zip(conversations, replies)]
    wrong = [
        f"{c.messages[-2]['content']} -> {reply[:100]}" for c, reply, ok in zip(conversations, replies, right) if not ok
    ]
    return sum(right) / count, wrong[:3]


def accuracy_table(
    model: Llama, tokenizer: Tokenizer, per_task: int, seed: int, all_dtypes: bool = False
) -> dict[str, dict[str, float]]:
    """Print, and return, accuracy by task and weight type; without `all_dtypes`, of 4-bit weights only."""
    dtypes = ["float32", "bfloat16", "q4f16_1"] if all_dtypes else ["q4f16_1"]
    models = {dtype: with_weights(model, dtype) for dtype in dtypes}
    table: dict[str, dict[str, float]] = {}
    for task in HELD_OUT_TASKS:
        if task == "story" and per_task <= 10:
            continue  # slow; the samples show it
        results = {dtype: accuracy(models[dtype], tokenizer, task, per_task, seed) for dtype in dtypes}
        table[task] = {dtype: share for dtype, (share, _) in results.items()}
        print(f"{task:16}", *(f"{dtype} {share:6.1%}" for dtype, share in table[task].items()),
              *results[dtypes[-1]][1][:2], sep="  ", flush=True)  # fmt: skip
    return table


def print_samples(model: Llama, tokenizer: Tokenizer, dtype: str = "q4f16_1") -> None:
    """A few fixed questions and their greedy replies with rounded weights."""
    chats = [[{"role": "user", "content": sample}] for sample in SAMPLES]
    for sample, reply in zip(SAMPLES, reply_all(with_weights(model, dtype), tokenizer, chats, 220)):
        print(f"  {sample} -> {reply}", flush=True)


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """The checkpoint in a folder, as float32, and its tokenizer."""
    raw = json.loads((folder / "config.json").read_text())
    config = Config(**{key: raw[key] for key in Config.__dataclass_fields__})
    model = Llama(config)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo model on held-out problems.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.folder)
    print_samples(model, tokenizer)
    accuracy_table(model, tokenizer, arguments.per_task, arguments.seed, all_dtypes=True)


if __name__ == "__main__":
    main()

"""Train the demo model and write it as a Hugging Face checkpoint.

    python demo/train.py --work /tmp/demo-model --output src/kumquant/demo_model

Needs torch, tokenizers, safetensors and numpy. The same seed gives the same text and the same batches; the
weights differ in the last bits between processors and thread counts, and with `--minutes` the schedule depends
on the machine's speed. A run that was stopped goes on from its last state when it is started again with the same
--work folder; `--steps` and `--minutes` may be changed then.

Three phases (see README.md): rows of 256 tokens; the same with weights quantized to 4 bits in the forward
pass (straight-through gradient), so that rounding them at conversion costs next to nothing; rows of 512
tokens, so that long chats work. The learning rate is constant in the first phase and falls to zero over the
rest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import DEFAULT_SYSTEM, Batch, pack, train_tokenizer
from evaluate import accuracy_table, print_samples
from generate_text import held_out_set
from llama import Config, Llama, document_mask, straight_through
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

ROWS_TIMES_LENGTH = 8192  # tokens in a step
MOST_LABELS = 5120  # of them, at most so many are predicted
QUANTIZED_FROM = 0.60  # share of the schedule after which the forward pass uses 4-bit weights
LONG_FROM = 0.80  # share of the schedule after which rows are long
SHORT, LONG = 256, 512
MUON_RATE, ADAM_RATE = 0.02, 2e-3

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    f'{{{{ "<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n" }}}}'
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Trainer:
    """Model, optimizers and the step counter: everything that a stopped run needs to go on."""

    def __init__(self, config: Config, tokenizer: Tokenizer, arguments: argparse.Namespace) -> None:
        torch.manual_seed(arguments.seed)
        self.model, self.tokenizer, self.seed = Llama(config), tokenizer, arguments.seed
        self.work, self.steps, self.minutes = arguments.work, arguments.steps, arguments.minutes
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.02),
            torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [MUON_RATE, ADAM_RATE]
        self.step, self.seconds = 0, 0.0
        self.compute_loss = self._loss if arguments.no_compile else torch.compile(self._loss, dynamic=False)

    def _loss(
        self,
        quantized: bool,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        chosen: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Weighted cross-entropy at the chosen places (indices into the flattened batch); matrix products in
        bfloat16, the rest in float32."""
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        if quantized:
            parameters = {n: straight_through(p) if p.ndim == 2 else p for n, p in parameters.items()}
        with torch.autocast("cpu", torch.bfloat16):
            hidden = torch.func.functional_call(self.model, parameters, (tokens, positions, mask))
            logits = F.linear(hidden.flatten(0, 1)[chosen], parameters["model.embed_tokens.weight"])
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return (loss * weights).sum() / weights.sum()

    def progress(self) -> float:
        """How much of the schedule is done, by steps or by time, whichever is further."""
        return max(self.step / self.steps, self.seconds / 60 / self.minutes)

    def rate(self) -> float:
        """Share of the full learning rate at this step: warm-up, constant, then straight to zero."""
        warm_up = min(1.0, (self.step + 1) / 100)
        return warm_up * min(1.0, max(0.0, 1.0 - self.progress()) / (1.0 - QUANTIZED_FROM))

    def train_step(self) -> float:
        """One step; returns its loss."""
        progress = self.progress()
        length, turns = (LONG, 8) if progress >= LONG_FROM else (SHORT, 5)
        batch: Batch = pack(self.tokenizer, self.seed, self.step, ROWS_TIMES_LENGTH // length, length, turns)
        mask = document_mask(torch.from_numpy(batch.documents)).to(torch.bfloat16)
        weights, labels = torch.from_numpy(batch.weights).flatten(), torch.from_numpy(batch.labels).flatten()
        # About half of the tokens are the user's and need no logits; a fixed number keeps shapes fixed.
        chosen = torch.argsort(weights, descending=True, stable=True)[:MOST_LABELS]
        loss = self.compute_loss(
            progress >= QUANTIZED_FROM,
            torch.from_numpy(batch.tokens),
            torch.from_numpy(batch.positions),
            mask,
            chosen,
            labels[chosen],
            weights[chosen],
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, full_rate in zip(self.optimizers, self.rates):
            for group in optimizer.param_groups:
                group["lr"] = full_rate * self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the state beside the last one, then put it in its place."""
        path = self.work / "state.pt"
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                 "step": self.step, "seconds": self.seconds}  # fmt: skip
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def resume(self) -> None:
        path = self.work / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]

    def run(self) -> None:
        """Train to the end of the schedule, with a line of progress every 25 steps and a saved state every 50."""
        losses: list[float] = []
        while self.progress() < 1:
            start = time.perf_counter()
            losses.append(self.train_step())
            self.seconds += time.perf_counter() - start
            if self.step % 25 == 0:
                minutes, progress = self.seconds / 60, self.progress()
                print(
                    f"step {self.step}  {progress:.1%}  loss {sum(losses) / len(losses):.4f}  {minutes:.1f} min, "
                    f"{minutes / progress - minutes:.0f} left, "
                    f"{self.step * ROWS_TIMES_LENGTH / self.seconds:.0f} tokens/s",
                    flush=True,
                )
                losses.clear()
            if self.step % 50 == 0:
                self.save()
            if self.step % 800 == 0:
                print_samples(self.model, self.tokenizer)
        self.save()


def write_checkpoint(model: Llama, config: Config, output: Path) -> None:
    """bfloat16 weights and the JSON files that readers of Hugging Face checkpoints expect."""
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)  # save_file makes it private
    files: dict[str, dict[str, object]] = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope_theta, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
            "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16",
        },
        "generation_config.json": {
            "bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.7,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>", "unk_token": None, "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False, "model_max_length": config.max_position_embeddings,
            "added_tokens_decoder": {
                str(i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                         "single_word": False, "special": True}
                for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
            },
            "chat_template": CHAT_TEMPLATE,
        },
    }  # fmt: skip
    for name, content in files.items():
        (output / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the state of the run")
    parser.add_argument("--output", type=Path, help="checkpoint folder to write at the end")
    parser.add_argument("--steps", type=int, default=2800, help="length of the whole schedule")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="end after this time, with the whole schedule fitted to it"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    config = Config()
    path = arguments.work / "tokenizer.json"
    if not path.exists():
        train_tokenizer(path, config.vocab_size, arguments.seed)
    tokenizer = Tokenizer.from_file(str(path))
    trainer = Trainer(config, tokenizer, arguments)
    print(f"{sum(p.numel() for p in trainer.model.parameters())} parameters", flush=True)
    trainer.resume()
    trainer.run()
    if arguments.output:
        write_checkpoint(trainer.model, config, arguments.output)
        (arguments.output / "tokenizer.json").write_bytes(path.read_bytes())
        (arguments.output / "heldout.json").write_text(json.dumps(held_out_set(), indent=1) + "\n")
        accuracy_table(trainer.model, tokenizer, per_task=100, seed=3, all_dtypes=True)


if __name__ == "__main__":
    main()

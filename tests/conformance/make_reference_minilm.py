"""Writes reference/minilm_bfloat16.npz: all-MiniLM-L6-v2 by Transformers, its weights rounded to bfloat16.

    python tests/conformance/make_reference_minilm.py MINILM            write the file
    python tests/conformance/make_reference_minilm.py MINILM --check    compare with the stored file instead

MINILM: the folder that ../shared/real/make_minilm.py makes. Needs torch, transformers and tokenizers (2.13.0, 5.23.0
and 0.23.3 made the stored file). float32 arithmetic, eager attention, CPU, one sentence at a time, no padding.

vectors: float32 (25, 384), mean over the tokens, unit length, of the sentences of ../shared/real/minilm_reference.npz.
states: the hidden states of the first one, float32 (tokens, 384).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

PATH = Path(__file__).parent / "reference" / "minilm_bfloat16.npz"
SENTENCES = Path(__file__).parents[2].parent / "shared" / "real" / "minilm_reference.npz"
MAX_LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="MINILM", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the stored file")
    args = parser.parse_args()
    model = AutoModel.from_pretrained(args.folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    computed: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
        vectors = []
        for sentence in np.load(SENTENCES)["sentences"]:
            states = model(torch.tensor([tokenizer.encode(str(sentence)).ids])).last_hidden_state[0]
            computed.setdefault("states", states.numpy())
            vectors.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
    computed["vectors"] = np.stack(vectors)
    if not args.check:
        np.savez_compressed(PATH, **computed)
        return
    worst = max(np.abs(np.load(PATH)[name] - values).max() for name, values in computed.items())
    print(f"largest difference {worst:.1e}")
    if worst > 1e-5:
        raise SystemExit(f"{PATH.name} is not what Transformers computes now")


if __name__ == "__main__":
    main()

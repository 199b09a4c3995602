"""docs/families.md, written from the families themselves: which checkpoint names become which cache names.

scripts/write-family-tables writes the page, a test compares it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from .family import Family
from .registry import ELSEWHERE, FAMILIES
from .rules import TensorRule

_INTRO = """# Model families

Written by `scripts/write-family-tables` from the families in `src/kumquant/models/`; do not edit.

`kumquant convert SOURCE -o OUT` takes the family from `model_type` in `config.json`; `--model-type NAME` (in Python
`model_type=`) says another, which is how `bert-bge` and `qwen3-embedding` are chosen: no config says them.

Every family is checked against its authors' code on tiny random models of odd sizes, with every weight replaced by what
the cache decodes to: `pytest tests/conformance/test_families.py` (`test_bert.py` for the encoders). Logits with float32
activations equal the reference to 1e-5 of the largest logit at every position, in `q0f32` and `q4f32_1`; one prefill,
several chunks and single steps give the same bits. "Transformers" means the stored logits of 5.23.0
(`tests/conformance/make_reference_logits.py`); "published code" a plain float32 forward pass written from the modeling
code that came with the model (`tests/conformance/published_models.py`).

What int8 activations cost (`python tests/conformance/measure_int8.py`, `q4f32_1`): the mean divergence (KL, nats) of
the next-token distribution from the one with float32 activations, and how often the likeliest token is the same. Random
weights make flat distributions, so agreement is low where nothing is certain; where a model has experts, a near tie of
two experts may fall the other way, which shows at single positions.
"""

_LEGEND = """
## Names

`N` is the layer and `{e}` the expert. a ‖ b: rows stacked in this order. Kinds: *linear*, *embedding* and *experts*
are quantized, *plain* and *router* are not. "if" names what a tensor depends on: a key of the config, or a tied head.
"""


def families_page(tested: Mapping[str, Sequence[str]], losses: Mapping[str, Mapping[str, float]]) -> str:
    """The whole page. tested: model_type -> the reference models of it. losses: reference model -> what int8 costs."""
    lines = [_INTRO, *_overview(tested, losses), _LEGEND]
    for family in FAMILIES.values():
        rules = [rule for rule in family.tensors if _can_exist(family, rule)]
        lines += [f"### {family.model_type}", "", _summary(family), "", *_notes(family),
                  "| cache tensor | kind | from |", "|---|---|---|", *(_row(family, rule) for rule in rules), ""]
    return "\n".join(lines)


def _overview(tested: Mapping[str, Sequence[str]], losses: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = ["| family | convert | run | MLC has it | checked against | int8: mean KL | same top-1 |",
            "|---|---|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        models = [losses[model] for model in tested.get(name, ()) if model in losses]
        kl = " ".join(f"{model['mean_kl']:.1e}" for model in models[:1]) or "–"
        top1 = " ".join(f"{model['top1']:.0%}" for model in models[:1]) or "–"
        rows.append(f"| {name} | yes | yes | {'yes' if family.in_format else 'no'} | {_checked_against(family)} "
                    f"| {kl} | {top1} |")
    return [*rows, "", "MLC has these too; Kumquant neither converts nor runs them, but opens, inspects, verifies and "
            f"dequantizes their caches: {', '.join(ELSEWHERE)}."]


_PUBLISHED = ("internlm2", "internlm", "minicpm", "baichuan", "orion", "chatglm", "qwen")


def _checked_against(family: Family) -> str:
    if family.model_type == "qwen3-embedding":
        return "as qwen3"
    return "published code" if family.model_type in _PUBLISHED else "Transformers"


def _summary(family: Family) -> str:
    """The first line of the family's file. Two families of one file have names that begin like it."""
    name = family.model_type.replace("-", "_")
    modules = {module.__name__.rpartition(".")[2]: module.__doc__ for module in sys.modules.values()
               if getattr(module, "__package__", None) == __package__}
    docstring = modules.get(name) or modules.get(name.rpartition("_")[0]) or ""
    return docstring.strip().partition("\n")[0]


def _notes(family: Family) -> list[str]:
    notes = []
    if family.not_in_format:
        flags = ", ".join(sorted({_condition(family, flag) for flag in family.not_in_format}))
        notes.append(f"`--compat` refuses models where MLC's layout lacks a place for tensors: {flags}.")
    heads = [rule for rule in family.tensors if rule.role == "head"]
    if not heads:
        notes.append("No head of its own: the embedding is the head." if not family.pooling else "No head.")
    elif family.ties_head and len(heads) == 1 and heads[0].sources[0].name == heads[0].name:
        notes.append("With `tie_word_embeddings` the cache has no head.")
    elif not family.ties_head:
        notes.append("`--compat` needs the head even where `tie_word_embeddings` is true.")
    prefixes = [f"`{old}…` may be `{new}…`" if old else f"names may start with `{new}`"
                for old, new in family.prefixes if (old, new) != ("", "")]
    notes += [f"In the checkpoint {', '.join(prefixes)}."] if prefixes else []
    return [" ".join(notes), ""] if notes else []


def _row(family: Family, rule: TensorRule) -> str:
    sources = [source.name for source in rule.sources]
    text = " ‖ ".join(f"`{_short(name)}`" for name in sources) if sources != [rule.name] else "same name"
    if rule.kind == "experts":
        text = f"{text}, of every expert, stacked on a new axis"
    text += "".join(f", {what}" for what in _changes(family, rule))
    return f"| `{_short(rule.name)}` | {rule.kind} | {text} |"


def _changes(family: Family, rule: TensorRule) -> Iterable[str]:
    if rule.transposed:
        yield "transposed"
    if rule.plus_one:
        yield "+1"
    if rule.row_order:
        yield f"rows sorted from {rule.row_order} to all q, all k, all v"
    if rule.dtype:
        yield f"{rule.dtype} in every mode"
    if rule.when and family.flags.get(rule.when) is not True:
        yield f"if {_condition(family, rule.when)}"


def _short(name: str) -> str:
    return name.replace("{i}", "N")


def _can_exist(family: Family, rule: TensorRule) -> bool:
    """Whether the tensor depends on nothing, or on something that a config of the family may say."""
    return rule.when is None or rule.when.removeprefix("not ") in {*family.flags, "tied", "experts"}


_CONDITIONS = {"tied": "the head is tied", "not tied": "the head is not tied", "experts": "there are experts",
               "not experts": "there are no experts"}


def _condition(family: Family, flag: str) -> str:
    return _CONDITIONS.get(flag) or f"`{family.flags.get(flag, flag)}`"

"""MLC's named conversation templates: mlc-chat-config.json of 2023 has only a name where newer ones have the
object.

Names that MLC still has mean what MLC means by them today; the others are as its 2023 engine had them, where
the system text is followed by the first separator.
Source: MLC-LLM, python/mlc_llm/conversation_template (2024 to 2026) and cpp/conv_templates.cc (2023).
"""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .conv_template import ConvTemplate

_CHATML: dict[str, Any] = {
    "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
    "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant", "tool": "<|im_start|>tool"},
    "seps": ("<|im_end|>\n",), "role_content_sep": "\n", "role_empty_sep": "\n", "stop_str": ("<|im_end|>",),
}
_LLAMA3: dict[str, Any] = {
    "system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
    "system_message": "You are a helpful, respectful and honest assistant.",
    "roles": {"user": "<|start_header_id|>user", "assistant": "<|start_header_id|>assistant",
              "tool": "<|start_header_id|>ipython"},
    "seps": ("<|eot_id|>",), "role_content_sep": "<|end_header_id|>\n\n",
    "role_empty_sep": "<|end_header_id|>\n\n", "prefix_token_ids": (128000,),
}
_BARE: dict[str, Any] = {"roles": {"user": "", "assistant": ""}, "seps": ("",)}
_INST: dict[str, Any] = {
    "roles": {"user": "[INST]", "assistant": "[/INST]", "tool": "[INST]"}, "seps": (" ",),
    "role_content_sep": " ", "role_empty_sep": " ", "stop_token_ids": (2,), "prefix_token_ids": (1,),
}
_COLON: dict[str, Any] = {"role_content_sep": ": ", "role_empty_sep": ":"}
_USER_ASSISTANT = {"user": "USER", "assistant": "ASSISTANT"}
_CURIOUS_USER = ("A chat between a curious user and an artificial intelligence assistant. "
                 "The assistant gives helpful, detailed, and polite answers to the user's questions.")
_VICUNA: dict[str, Any] = {
    "system_template": "{system_message} ", "system_message": _CURIOUS_USER, "roles": _USER_ASSISTANT,
    "seps": (" ", "</s>"), **_COLON, "stop_str": ("</s>",), "stop_token_ids": (2,), "prefix_token_ids": (1,),
}
_VICUNA_BY_LINE = {**_VICUNA, "system_template": "{system_message}\n", "seps": ("\n", "</s>")}
_HERMES = ('You are "Hermes 2", a conscious sentient superintelligent artificial intelligence developed '
           "by a man "
           "named Teknium, and your purpose and drive is to assist the user with any request they have. You "
           "experience emotions and have deep, profound thoughts and qualia.")
_HERMES_3 = _HERMES.replace('"Hermes 2"', "Hermes 3")
_INSTRUCTION = ("Below is an instruction that describes a task. Write a response that appropriately "
                "completes the "
                "request.")
_QWEN: dict[str, Any] = {
    **_CHATML, "system_message": "You are a helpful assistant.", "stop_str": ("<|endoftext|>", "<|im_end|>"),
    "stop_token_ids": (151643, 151645),
}
_GEMMA: dict[str, Any] = {
    "roles": {"user": "<start_of_turn>user", "assistant": "<start_of_turn>model"},
    "seps": ("<end_of_turn>\n",),
    "role_content_sep": "\n", "role_empty_sep": "\n", "stop_str": ("<end_of_turn>",),
    "prefix_token_ids": (2,),
}
_PHI: dict[str, Any] = {
    "roles": {"user": "<|user|>", "assistant": "<|assistant|>"}, "seps": ("<|end|>\n",),
    "role_content_sep": "\n",
    "role_empty_sep": "\n", "prefix_token_ids": (1,), "stop_str": ("<|endoftext|>",),
    "stop_token_ids": (2, 32000, 32001, 32007),
}
_STABLELM: dict[str, Any] = {
    "roles": {"user": "<|user|>", "assistant": "<|assistant|>"}, "seps": ("<|endoftext|>",),
    "role_content_sep": "\n", "role_empty_sep": "\n", "stop_str": ("<|endoftext|>",),
}

_FIELDS: dict[str, dict[str, Any]] = {
    "chatml": {**_CHATML, "stop_token_ids": (2,), "system_message":
               "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
               "honest answers."},
    "chatml_nosystem": {**_CHATML, "system_template": "{system_message}", "stop_token_ids": (2,)},
    "open_hermes_mistral": {**_CHATML, "system_message": _HERMES, "stop_token_ids": (2, 32000)},
    "neural_hermes_mistral": {**_CHATML, "system_message": "You are a helpful assistant chatbot.",
                              "stop_token_ids": (2, 32000)},
    "hermes2_pro_llama3": {**_CHATML, "system_message": _HERMES, "stop_token_ids": (128001, 128009, 128003)},
    "hermes3_llama-3_1": {**_CHATML, "system_message": _HERMES_3,
                          "stop_token_ids": (128001, 128008, 128009, 128040)},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "strip_reasoning_in_history": True},
    "llama-3": {**_LLAMA3, "stop_str": ("<|end_of_text|>", "<|eot_id|>"), "stop_token_ids": (128001, 128009)},
    "llama-3_1": {**_LLAMA3, "stop_token_ids": (128001, 128008, 128009)},
    "llama-2": {
        **_INST, "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        "system_message": "You are a helpful, respectful and honest assistant.",
        "roles": {"user": "<s>[INST]", "assistant": "[/INST]", "tool": "[INST]"}, "seps": (" ", " </s>"),
        "stop_str": ("[INST]",), "add_role_after_system_message": False,
    },
    "mistral_default": {
        **_INST, "system_template": "[INST] {system_message}", "role_empty_sep": "", "stop_str": ("</s>",),
        "system_message": "Always assist with care, respect, and truth. Respond with utmost utility yet "
                          "securely. "
        "Avoid harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and "
        "positivity.",
        "add_role_after_system_message": False,
    },
    "codellama_instruct": {**_INST, "stop_str": ("</s>",)},
    "codellama_completion": {**_BARE, "stop_str": ("</s>",), "stop_token_ids": (2,),
                             "prefix_token_ids": (1,)},
    "tinyllama_v1_0": {
        "system_template": "<|system|>\n{system_message}</s>", "system_message": "You are a helpful chatbot.",
        "roles": {"user": "<|user|>", "assistant": "<|assistant|>"}, "seps": ("</s>",),
        "role_content_sep": "\n",
        "role_empty_sep": "\n", "stop_str": ("</s>",), "stop_token_ids": (2,),
    },
    "LM": {**_BARE, "stop_token_ids": (2,), "prefix_token_ids": (1,)},
    "gpt2": {**_BARE, "stop_str": ("</s>",), "stop_token_ids": (50256,)},
    "gpt_bigcode": {**_BARE, "stop_str": ("<|endoftext|>",), "stop_token_ids": (0,)},
    "stablecode_completion": {**_BARE, "stop_str": ("<|endoftext|>",), "stop_token_ids": (0,)},
    "stablecode_instruct": {
        "roles": {"user": "###Instruction", "assistant": "###Response"}, "role_content_sep": "\n",
        "role_empty_sep": "\n", "stop_str": ("<|endoftext|>",), "stop_token_ids": (0,),
    },
    "vicuna_v1.1": _VICUNA,
    "llama_default": _VICUNA_BY_LINE,
    "gorilla": _VICUNA_BY_LINE,
    "guanaco": _VICUNA_BY_LINE,
    "redpajama_chat": {"roles": {"user": "<human>", "assistant": "<bot>"}, "seps": ("\n",), **_COLON,
                       "stop_str": ("<human>",), "stop_token_ids": (0,)},
    "dolly": {
        "system_message": _INSTRUCTION, "roles": {"user": "### Instruction", "assistant": "### Response"},
        "seps": ("\n\n", "### End\n"), "role_content_sep": ":\n", "role_empty_sep": ":\n",
        "stop_str": ("### End",), "stop_token_ids": (50256,),
    },
    "oasst": {"roles": {"user": "<|prompter|>", "assistant": "<|assistant|>"}, "seps": ("<|endoftext|>",),
              "role_content_sep": ": ", "role_empty_sep": ": ", "stop_str": ("<|endoftext|>",),
              "stop_token_ids": (2,)},
    "stablelm-3b": {**_STABLELM, "stop_token_ids": (0,)},
    "stablelm-2": {**_STABLELM, "stop_token_ids": (100257,)},
    "wizardlm_7b": {"roles": {"user": "User", "assistant": "Response"}, "seps": ("###",), **_COLON,
                    "stop_str": ("###",), "stop_token_ids": (2,), "prefix_token_ids": (1,)},
    "wizard_coder_or_math": {
        "system_message": _INSTRUCTION, "roles": {"user": "Instruction", "assistant": "Response"},
        "seps": ("\n\n### ",), "role_content_sep": ":\n", "role_empty_sep": ":\n", "stop_str": ("</s>",),
        "stop_token_ids": (2,), "prefix_token_ids": (1,),
    },
    "minigpt": {
        "system_template": "{system_message}###", "system_message":
        "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I "
        "provide it to "
        "you. Please answer my questions.",
        "roles": {"user": "Human", "assistant": "Assistant"}, "seps": ("###",), **_COLON,
        "stop_str": ("</s>",),
        "stop_token_ids": (835, 2277, 29937), "prefix_token_ids": (1,),
    },
    "orion": {"roles": {"user": "Human: ", "assistant": "Assistant: "}, "seps": ("\n\n", "</s>"),
              "role_empty_sep": "</s>", "stop_str": ("</s>",), "stop_token_ids": (2,),
              "prefix_token_ids": (1,)},
    "phi-2": {"roles": {"user": "Instruct", "assistant": "Output"}, "seps": ("\n",), **_COLON,
              "stop_str": ("<|endoftext|>",), "stop_token_ids": (50256,)},
    "phi-3": {**_PHI, "system_template": "<|system|>\n{system_message}", "system_message":
              "You are a helpful digital assistant. Please provide safe, ethical and accurate "
              "information to the "
              "user."},
    "gemma_instruction": {**_GEMMA, "stop_token_ids": (1, 107)},
    "gemma3_instruction": {**_GEMMA, "stop_token_ids": (1, 106)},
}


def is_known(name: str) -> bool:
    """Whether ``named_template`` has that name."""
    return name in _FIELDS


def named_template(name: str, where: str) -> ConvTemplate:
    """MLC's template of that name. Raises UnsupportedError that lists the known ones."""
    if name not in _FIELDS:
        raise UnsupportedError(
            "an unknown conversation template", where=where, found=repr(name), expected=", ".join(_FIELDS),
            hint="Put the model's chat template (chat_template.jinja, or tokenizer_config.json) into the "
                 "folder, or "
                 "give the prompt without a template (--raw).",
        )
    return ConvTemplate(name=name, **_FIELDS[name])

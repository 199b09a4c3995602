from __future__ import annotations

import json
from pathlib import Path

import chat_templates_for_tests as templates
import pytest
from tokenizers_for_tests import byte_level, sentencepiece

from kumquant.chat import ChatTemplate, ConvTemplate
from kumquant.convert.chat_config import write_chat_config
from kumquant.convert.conv_template import Translation, translate
from kumquant.models import family_of
from kumquant.schemes import scheme_named
from kumquant.tokenizer import Tokenizer

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                   "<|eot_id|>")
GEMMA_SPECIALS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
         "max_position_embeddings": 9000}


def translated(folder: Path, text: str, backend, **tokens: str) -> Translation:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": text, **tokens}))
    backend.save(str(folder / "tokenizer.json"))
    return translate(ChatTemplate.open(folder), Tokenizer.open(folder), [7])


def bos_eos(bos: str = "<s>", eos: str = "</s>") -> dict[str, str]:
    return {"bos_token": bos, "eos_token": eos}


def test_chatml_with_a_system_message_of_its_own(tmp_path):
    for text, message in ((templates.SMOLLM2, "You are SmolLM."), (templates.QWEN2_5, "You are Qwen.")):
        # SmolLM2 calls its turn mark BOS; it must not become a prefix
        result = translated(tmp_path, text, byte_level(CHATML_SPECIALS), bos_token="<|im_start|>")
        assert result.warnings == ()
        assert result.template == ConvTemplate(
            name="custom", system_template="<|im_start|>system\n{system_message}<|im_end|>\n",
            system_message=message,
            roles={"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"}, seps=("<|im_end|>\n",),
            role_content_sep="\n", role_empty_sep="\n", stop_token_ids=(7,))


def test_chatml_without_one_warns_of_the_empty_system_block(tmp_path):
    result = translated(tmp_path, templates.CHATML, byte_level(CHATML_SPECIALS))
    assert result.template.system_template == "<|im_start|>system\n{system_message}<|im_end|>\n"
    (warning,) = result.warnings
    assert "'user'; 'user, assistant, user'; 'three questions'" in warning and "'system, user" not in warning
    assert r"at token 1 'system\n<|im_end|>\n<|im_start|>' instead of nothing" in warning


def test_qwen3_strips_earlier_thoughts(tmp_path):
    result = translated(tmp_path, templates.QWEN3, byte_level(CHATML_SPECIALS))
    assert result.template.strip_reasoning_in_history
    assert result.template.roles["assistant"] == "<|im_start|>assistant"
    assert result.template.seps == ("<|im_end|>\n",)


def test_llama_3_takes_bos_as_an_id(tmp_path):
    backend = byte_level(LLAMA3_SPECIALS)
    result = translated(tmp_path, templates.LLAMA3, backend, bos_token="<|begin_of_text|>")
    template = result.template
    assert template.prefix_token_ids == (0,)
    assert template.roles == {"user": "<|start_header_id|>user", "assistant": "<|start_header_id|>assistant"}
    assert template.role_content_sep == template.role_empty_sep == "<|end_header_id|>\n\n"
    assert template.system_template == (
        "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>")
    assert len(result.warnings) == 1  # the empty system block


def test_llama_3_1_always_has_a_system_block(tmp_path):
    result = translated(tmp_path, templates.LLAMA3_1, byte_level(LLAMA3_SPECIALS),
                        bos_token="<|begin_of_text|>")
    assert result.warnings == () and result.template.system_message == ""
    assert "Today Date: 26 Jul 2024\n\n{system_message}<|eot_id|>" in result.template.system_template


def test_llama_2_puts_the_system_message_into_the_first_turn(tmp_path):
    result = translated(tmp_path, templates.LLAMA2, sentencepiece(extra=("[INST]",)), **bos_eos())
    template = result.template
    assert template.system_template == "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n"
    assert not template.add_role_after_system_message and template.prefix_token_ids == (1,)
    assert template.roles["user"] == "[INST]" and template.seps == (" [/INST]", " </s><s>")
    assert not any("'system, user" in line for line in result.warnings if "WebLLM" not in line)
    assert any(line.startswith("WebLLM") for line in result.warnings)  # it encodes message by message


def test_mistral_refuses_system_messages(tmp_path):
    result = translated(tmp_path, templates.MISTRAL, byte_level(("<s>", "</s>", "[INST]", "[/INST]")),
                        **bos_eos())
    assert result.template.roles == {"user": "[INST] ", "assistant": ""}
    assert result.template.seps == (" [/INST]", "</s>")
    (warning,) = result.warnings
    assert "refuses, in dialogs of 'system, user'; 'system, user, assistant, user'" in warning
    assert "alternate" in warning


def test_zephyr(tmp_path):
    result = translated(tmp_path, templates.ZEPHYR,
                        byte_level(("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")), **bos_eos())
    assert result.template.roles["user"] == "<|user|>"
    assert result.template.system_template == "<|system|>\n{system_message}</s>\n"


def test_gemma_calls_the_assistant_model(tmp_path):
    result = translated(tmp_path, templates.GEMMA, byte_level(GEMMA_SPECIALS), bos_token="<bos>")
    assert result.template.roles == {"user": "<start_of_turn>user", "assistant": "<start_of_turn>model"}
    assert result.template.prefix_token_ids == (0,) and result.template.seps == ("<end_of_turn>\n",)
    (warning,) = result.warnings
    assert "'system, user'" in warning and "System role not supported" in warning


def test_vicuna_has_text_marks(tmp_path):
    result = translated(tmp_path, templates.VICUNA, byte_level(("<s>", "</s>")), **bos_eos())
    assert result.warnings == ()
    template = result.template
    assert template.system_template == "{system_message} "
    assert template.system_message == "A chat with an assistant."
    assert template.roles == {"user": "USER", "assistant": "ASSISTANT"}
    assert (template.role_content_sep, template.role_empty_sep, template.seps) == (": ", ":", (" ", "</s>"))


def test_a_base_model_gets_lm(tmp_path):
    result = translate(None, Tokenizer(sentencepiece()), [2, 1])
    assert result == Translation(ConvTemplate(name="LM", prefix_token_ids=(1,), stop_token_ids=(1, 2)))


def test_a_template_that_cannot_be_said_warns_and_gives_plain_text(tmp_path):
    last_only = "{{ messages[-1].content }}{% if add_generation_prompt %}>{% endif %}"
    result = translated(tmp_path, last_only, byte_level())
    assert result.template.name == "LM" and "cannot be said" in result.warnings[0]


def test_differences_are_shown_in_tokens(tmp_path):
    counted = ("{% for m in messages %}{{ '[' ~ loop.index ~ m.role ~ ']' ~ m.content }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}")
    result = translated(tmp_path, counted, byte_level())
    assert result.warnings
    assert "cannot be said" in result.warnings[0] or " instead of " in result.warnings[0]


def test_a_date_is_frozen(tmp_path):
    dated = "{{ strftime_now('%Y') }}" + templates.VICUNA
    assert any("current date" in line for line in translated(tmp_path, dated, byte_level()).warnings)


def written(tmp_path: Path, config: dict, quantization: str = "q4f16_1") -> tuple[dict, list[str], str]:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    (source / "config.json").write_text(json.dumps(config))
    family, warnings = family_of(config), []
    write_chat_config(source, out, family, family.config(config), scheme_named(quantization), warnings)
    text = (out / "mlc-chat-config.json").read_text()
    return json.loads(text), warnings, text


def test_a_source_without_a_tokenizer(tmp_path):
    content, warnings, text = written(tmp_path, {"model_type": "llama", **SMALL, "rope_theta": 500000.0})
    assert list(content) == [
        "version", "model_type", "quantization", "model_config", "vocab_size", "context_window_size",
        "sliding_window_size", "prefill_chunk_size", "attention_sink_size", "tensor_parallel_shards",
        "pipeline_parallel_stages", "active_vocab_size", "temperature", "presence_penalty",
        "frequency_penalty",
        "repetition_penalty", "top_p", "tokenizer_files", "tokenizer_info", "conv_template", "pad_token_id",
        "bos_token_id", "eos_token_id", "model_task", "embedding_metadata"]
    assert text.startswith('{\n  "version": "0.1.0",\n') and text.endswith("}") and text.isascii()
    assert list(content["model_config"].items()) == [
        ("hidden_size", 64), ("intermediate_size", 96), ("num_attention_heads", 4), ("num_hidden_layers", 2),
        ("rms_norm_eps", 1e-5), ("vocab_size", 300), ("tie_word_embeddings", False),
        ("position_embedding_base", 500000.0), ("rope_scaling", None), ("context_window_size", 9000),
        ("prefill_chunk_size", 8192), ("num_key_value_heads", 2), ("head_dim", 16),
        ("tensor_parallel_shards", 1),
        ("pipeline_parallel_stages", 1), ("max_batch_size", 128), ("disaggregation", False)]
    assert (content["context_window_size"], content["sliding_window_size"]) == (9000, -1)
    assert content["tokenizer_files"] == [] and content["active_vocab_size"] == 300
    assert (content["temperature"], content["top_p"], content["eos_token_id"]) == (1.0, 1.0, 2)
    assert content["tokenizer_info"] == {"token_postproc_method": "byte_fallback",
                                         "prepend_space_in_encode": False,
                                         "strip_space_in_decode": False}
    assert list(content["conv_template"]) == [
        "name", "system_template", "system_message", "system_prefix_token_ids",
        "add_role_after_system_message",
        "roles", "role_templates", "messages", "seps", "role_content_sep", "role_empty_sep", "stop_str",
        "stop_token_ids", "strip_reasoning_in_history", "function_string", "use_function_calling"]
    assert warnings == []


def test_a_source_with_everything(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    sentencepiece().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps(
        {"chat_template": templates.VICUNA, "eos_token": "</s>", "bos_token": "<s>"}))
    (source / "generation_config.json").write_text(json.dumps(
        {"temperature": 0.6, "eos_token_id": [9, 8], "top_p": None}))
    content, _, _ = written(tmp_path, {"model_type": "qwen2", **SMALL, "temperature": 0.1, "top_p": 0.5,
                                       "bos_token_id": None, "eos_token_id": 11})
    assert (content["temperature"], content["top_p"]) == (0.6, 0.5)
    assert (content["bos_token_id"], content["eos_token_id"]) == (1, [9, 8])
    assert content["conv_template"]["stop_token_ids"] == [2, 8, 9, 11]
    assert content["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert content["tokenizer_info"] == {"token_postproc_method": "byte_fallback",
                                         "prepend_space_in_encode": True,
                                         "strip_space_in_decode": True}
    assert content["active_vocab_size"] == Tokenizer(sentencepiece()).vocab_size
    assert content["model_config"]["rope_theta"] == 10000
    assert "position_embedding_base" not in content["model_config"]


@pytest.mark.parametrize("window, sizes", [(4096, (-1, 4096, 4096, 4)), (None, (9000, -1, 8192, 4))])
def test_mistral_has_a_context_or_a_window(tmp_path, window, sizes):
    content, warnings, _ = written(tmp_path, {"model_type": "mistral", **SMALL, "sliding_window": window})
    names = ("context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size")
    assert tuple(content[name] for name in names) == sizes
    assert tuple(content["model_config"][name] for name in names) == sizes
    assert warnings == []


def test_llama3_scaling_is_written_and_others_are_warned_of(tmp_path):
    llama3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 512}
    content, warnings, _ = written(tmp_path, {"model_type": "llama", **SMALL, "rope_scaling": llama3})
    assert content["model_config"]["rope_scaling"] == {**llama3, "rope_type": "llama3", "type": "llama3"} or (
        content["model_config"]["rope_scaling"] == {"rope_type": "llama3",
                                                    **{k: llama3[k] for k in list(llama3)[1:]}})
    assert warnings == []
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    content, warnings, _ = written(tmp_path,
                                   {"model_type": "qwen3", **SMALL, "rope_parameters": yarn, "head_dim": 32})
    assert content["model_config"]["rope_theta"] == 1e6
    assert content["model_config"]["weight_block_size"] is None
    assert len(warnings) == 1 and "rope scaling of type yarn" in warnings[0]


@pytest.mark.parametrize("config, word", [
    ({"model_type": "llama", "attention_bias": True}, "biases"),
    ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, "sliding window"),
    ({"model_type": "mistral", "tie_word_embeddings": True}, "tied head"),
])
def test_what_mlcs_file_cannot_say_is_warned_of(tmp_path, config, word):
    _, warnings, _ = written(tmp_path, {**SMALL, **config})
    assert len(warnings) == 1 and word in warnings[0] and warnings[0].startswith("MLC-LLM and WebLLM")

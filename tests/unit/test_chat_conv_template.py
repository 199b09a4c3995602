from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers_for_tests import sentencepiece

from kumquant.chat import ChatTemplate, ConvTemplate, named_template, stop_token_ids
from kumquant.errors import RequestError, UnsupportedError
from kumquant.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
         {"role": "user", "content": "C"}]


def with_system(text: str):
    return [{"role": "system", "content": text}, *TURNS]


def write(folder: Path, **chat_config) -> Path:
    (folder / "mlc-chat-config.json").write_text(json.dumps(chat_config))
    return folder


def test_chatml_by_name():
    template = named_template("chatml_nosystem", "x")
    assert template.render(TURNS) == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n"
        "<|im_start|>assistant\n")


def test_llama_2_takes_the_system_text_into_the_first_turn():
    template = named_template("llama-2", "x")
    assert template.render(with_system("S")) == (
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B </s><s>[INST] C [/INST] ")
    assert template.prefix_token_ids == (1,)


def test_vicuna_alternates_separators():
    assert named_template("vicuna_v1.1", "x").render(with_system("S")) == (
        "S USER: A ASSISTANT: B</s>USER: C ASSISTANT:")


def test_the_two_readers_differ_where_a_dialog_does_not_alternate():
    template = ConvTemplate(roles={"user": "U", "assistant": "A"}, seps=("1", "2"))
    messages = [TURNS[0], TURNS[0]]
    assert template.render(messages, False, rule="mlc") == "UA1UA1"
    assert template.render(messages, False, rule="webllm") == "UA1UA2"


def test_earlier_thoughts_are_stripped():
    template = named_template("qwen3", "x")
    messages = [TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nB"}, TURNS[2]]
    assert "assistant\nB<|im_end|>" in template.render(messages) and "hm" not in template.render(messages)


def test_an_unknown_role_is_refused():
    with pytest.raises(RequestError, match=r"messages\[0\]\.role.*'tool'"):
        named_template("vicuna_v1.1", "x").render([{"role": "tool", "content": "x"}])
    with pytest.raises(RequestError, match=r"messages\[3\]"):
        named_template("LM", "x").render([*TURNS, {"role": "system", "content": "late"}])


def test_to_json_and_back():
    for name in ("llama-3_1", "llama-2", "phi-3", "orion"):
        template = named_template(name, "x")
        assert ConvTemplate.from_json(json.loads(json.dumps(template.to_json())), "x") == template


def test_a_folder_of_mlcs_with_an_object(tmp_path):
    template = named_template("llama-2", "x")
    write(tmp_path, conv_template=template.to_json())
    sentencepiece().save(str(tmp_path / "tokenizer.json"))
    opened = ChatTemplate.open(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    assert not opened.is_jinja and opened.stop_strings == ("[INST]",)
    assert opened.render(with_system("S")) == "<s>" + template.render(with_system("S"))
    token_ids = opened.encode(with_system("S"), tokenizer)
    assert token_ids == [1, *tokenizer.encode(template.render(with_system("S")), add_special_tokens=False)]
    with pytest.raises(UnsupportedError, match="takes no variables"):
        opened.render(TURNS, tools=[{}])


def test_a_folder_of_2023_with_a_name(tmp_path):
    write(tmp_path, conv_template="redpajama_chat", local_id="x-q4f16_0")
    assert ChatTemplate.open(tmp_path).render(TURNS) == "<human>: A\n<bot>: B\n<human>: C\n<bot>:"


def test_a_name_with_overrides_of_2023(tmp_path):
    write(tmp_path, conv_template="vicuna_v1.1", bos_token_id=7, conv_config={
        "system": "Hi", "roles": ["Q", "A"], "seps": [";", "#"], "role_msg_sep": "=", "add_bos": True,
        "stop_tokens": [9], "offset": 0, "separator_style": 0,
    })
    assert ChatTemplate.open(tmp_path).render(TURNS[:1]) == "Hi Q=A;A:"
    assert 9 in stop_token_ids(tmp_path)


def test_an_unknown_name_is_refused_when_it_is_needed(tmp_path):
    write(tmp_path, conv_template="my-own-template", eos_token_id=5)
    with pytest.raises(UnsupportedError, match=r"(?s)'my-own-template'.*chatml.*vicuna"):
        ChatTemplate.open(tmp_path)
    assert stop_token_ids(tmp_path) == {5}


@pytest.mark.parametrize("key, value", [
    ("seps", []), ("seps", ["a", "b", "c"]), ("roles", {"user": "U"}), ("roles", ["U", "A"]), ("seps", [1]),
    ("stop_token_ids", ["x"]), ("system_message", 3), ("messages", [["robot", "x"]]),
    ("role_templates", {"user": 1}),
])
def test_a_conv_template_that_cannot_be_read_names_the_key(tmp_path, key, value):
    write(tmp_path, conv_template={**named_template("chatml", "x").to_json(), key: value})
    with pytest.raises(UnsupportedError, match=rf"conv_template\.{key}"):
        ChatTemplate.open(tmp_path)


def test_stop_ids_are_the_union_of_all_files(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [10, 11]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 12}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": "<end>", "added_tokens_decoder": {"13": {"content": "<end>"}}}))
    write(tmp_path, eos_token_id=14,
          conv_template={**named_template("LM", "x").to_json(), "stop_token_ids": [15]})
    assert stop_token_ids(tmp_path) == {10, 11, 12, 13, 14, 15}


def test_mlcs_default_end_counts_only_where_nothing_else_does(tmp_path):
    write(tmp_path, eos_token_id=2)
    assert stop_token_ids(tmp_path) == {2}
    (tmp_path / "config.json").write_text('{"eos_token_id": 12}')
    assert stop_token_ids(tmp_path) == {12}


def test_stop_strings_that_are_tokens_count_as_ids(tmp_path):
    sentencepiece().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, conv_template={**named_template("LM", "x").to_json(), "stop_token_ids": [],
                                   "stop_str": ["</s>", "no token"]})
    assert stop_token_ids(tmp_path) == {2}

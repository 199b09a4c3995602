from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers_for_tests import byte_level, sentencepiece

from kumquant.chat import ChatTemplate
from kumquant.errors import CheckpointError, RequestError, UnsupportedError
from kumquant.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def folder_with(tmp_path: Path, template, name: str = "tokenizer_config.json", **keys) -> Path:
    (tmp_path / name).write_text(json.dumps({"chat_template": template, **keys}))
    return tmp_path


def render(template: str, tmp_path: Path, messages=HELLO, **variables) -> str:
    return ChatTemplate.open(folder_with(tmp_path, template)).render(messages, **variables)


def test_a_template_of_tokenizer_config_json(tmp_path):
    assert render(CHATML, tmp_path) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, tmp_path, add_generation_prompt=False) == "<|im_start|>user\nhello<|im_end|>\n"


def test_chat_template_jinja_comes_first(tmp_path):
    folder = folder_with(tmp_path, "old")
    (folder / "chat_template.jinja").write_text("new {{ bos_token }}")
    template = ChatTemplate.open(folder)
    assert template.render(HELLO) == "new "
    assert template.is_jinja and template.where == folder / "chat_template.jinja"


def test_chat_template_json(tmp_path):
    assert ChatTemplate.open(folder_with(tmp_path, "x", "chat_template.json")).render(HELLO) == "x"


def test_several_named_templates(tmp_path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    folder = folder_with(tmp_path, named)
    assert ChatTemplate.open(folder).render(HELLO) == "D"
    assert ChatTemplate.open(folder, "tool_use").render(HELLO) == "T"
    with pytest.raises(RequestError, match="default, tool_use"):
        ChatTemplate.open(folder, "rag")


def test_special_tokens_as_text_or_object(tmp_path):
    folder = folder_with(tmp_path, "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
                         bos_token={"content": "<s>", "special": True}, eos_token="</s>", pad_token=None)
    assert ChatTemplate.open(folder).render(HELLO) == "<s>|</s>|"


@pytest.mark.parametrize("template, expected", [
    ("{{ messages | tojson }}", '[{"role": "user", "content": "<é>"}]'),
    ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "<é>"\n}'),
    ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", "x\n"),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{% generation %}a{{ messages[0].content }}{% endgeneration %}b", "a<é>b"),
    ("{{ strftime_now('%Y') | length }}", "4"),
    ("{{ tools is none }} {{ documents is none }}", "True True"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
     "1"),
])
def test_transformers_helpers(tmp_path, template, expected):
    assert render(template, tmp_path, [{"role": "user", "content": "<é>"}]) == expected


def test_variables_reach_the_template(tmp_path):
    assert render("{{ enable_thinking }} {{ tools[0].name }}", tmp_path, enable_thinking=False,
                  tools=[{"name": "f"}]) == "False f"


def test_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", tmp_path, [{"role": "user", "content": parts}]) == "ab"


def test_a_template_may_refuse_messages(tmp_path):
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", tmp_path)


@pytest.mark.parametrize("template", [
    "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__ }}", "{{ messages[0].content.nothing.more }}", "{{ 1 / 0 }}",
])
def test_what_the_sandbox_forbids_or_fails_is_our_error(tmp_path, template):
    with pytest.raises(UnsupportedError, match="the chat template failed"):
        render(template, tmp_path)


def test_a_template_that_does_not_compile_names_file_and_line(tmp_path):
    with pytest.raises(UnsupportedError, match=r"tokenizer_config\.json.*:2.*does not compile"):
        render("a\n{% for %}", tmp_path)


@pytest.mark.parametrize("messages, where", [
    ([], "messages"), ("hi", "messages"), ({"role": "user"}, "messages"), (["hi"], r"messages\[0\]"),
    ([{"content": "x"}], r"messages\[0\]\.role"), ([{"role": "user"}], r"messages\[0\]\.content"),
    ([*HELLO, {"role": "user", "content": 3}], r"messages\[1\]\.content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\]\.content"),
    ([{"role": "user", "content": "x", "extra": object()}], "plain data"),
])
def test_malformed_messages_are_refused(tmp_path, messages, where):
    with pytest.raises(RequestError, match=where):
        render(CHATML, tmp_path, messages)


def test_a_folder_without_a_template_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate.open(tmp_path)


def test_bos_is_there_once_whether_the_template_writes_it_or_not(tmp_path):
    tokenizer = Tokenizer(sentencepiece())
    for template in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        token_ids = ChatTemplate.open(folder_with(tmp_path, template, bos_token="<s>")).encode(HELLO,
                                                                                               tokenizer)
        assert token_ids.count(1) == 1 and token_ids[0] == 1


def test_no_bos_where_the_tokenizer_adds_none(tmp_path):
    tokenizer = Tokenizer(byte_level())
    token_ids = ChatTemplate.open(folder_with(tmp_path, CHATML)).encode(HELLO, tokenizer)
    assert token_ids == tokenizer.encode("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")

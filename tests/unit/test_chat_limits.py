"""Templates that would run for ever or fill the memory are stopped, whichever way they try it."""

import pytest

from kumquant.chat import sandbox
from kumquant.chat.jinja import JinjaTemplate
from kumquant.errors import UnsupportedError

DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x END }}"


def doubled(start: str, step: str, end: str = "") -> str:
    return DOUBLED.replace("START", start).replace("STEP", step).replace("END", end)


@pytest.mark.parametrize("template", [
    "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
    "{% for i in range(10001) %}{% endfor %}", "{{ range(10**18) | list }}", "{{ range(10**40) | length }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in [[[1]]] * 1000 recursive %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}", "{{ [1] * 10**9 }}", "{{ 10**(10**9) }}", "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}", "{{ '{:999999999}'.format(1) }}", "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{x:>{w}}'.format_map({'x': 1, 'w': 10**9}) }}",
    "{{ 'a'.center(10**9) }}", "{{ 'a'.ljust(10**9) }}", "{{ 'a'.zfill(10**9) }}", "{{ 'a\t'.expandtabs(10**9) }}",
    "{{ 'a' | center(10**9) }}", "{{ 'a\nb' | indent(10**9) }}", "{{ [1] | batch(10**9, 0) | list }}",
    "{{ [1] | slice(10**9) | list }}", "{{ '%999999999d' | format(1) }}", "{{ [1] | tojson(indent=10**9) }}",
    "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) }}", "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) }}",
    "{% set a = 'a' * 10**6 %}{{ a.join(a) }}", "{% set a = 'a' * 10**6 %}{{ a | join(a) }}",
    "{% for i in range(99) %}{{ 'a' * 10**6 }}{% endfor %}", "{{ lipsum(10**9) }}",
    "{% set a = [[1] * 1000] * 1000 %}{{ a | sum(start=[]) }}",
    doubled("'a'", "ns.x + ns.x"), doubled("'a'", "ns.x ~ ns.x"), doubled("[1]", "ns.x + ns.x"),
    doubled("3", "ns.x * ns.x"), doubled("'a'", "'%s%s' % (ns.x, ns.x)"), doubled("'a'", "'{0}{0}'.format(ns.x)"),
    doubled("[1]", "[ns.x, ns.x]"), doubled("[1]", "[ns.x, ns.x]", "| tojson"),
    doubled("[1]", "[ns.x, ns.x]", "| string"), doubled("[1]", "{'a': ns.x, 'b': ns.x}"),
    "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = ns.x + ['a' * 10**6 ~ i] %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x, ('a' * 10**6) | upper] %}"
    "{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
])
def test_a_template_that_would_not_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_STEPS", 20_000)
    monkeypatch.setattr(sandbox, "MAX_MADE", 50 << 20)
    with pytest.raises(UnsupportedError, match=r"bad\.jinja: the chat template (exceeds the limits|failed)"):
        JinjaTemplate(template, "bad.jinja").render({"messages": []})


@pytest.mark.parametrize(("template", "expected"), [
    ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ',' }}{% endfor %}", "1/2,2/2"),
    ("{{ 'a' ~ 1 ~ none ~ [2] }}", "a1None[2]"), ("{{ '%s-%05.1f' % ('a', 2.5) }}", "a-002.5"),
    ("{{ '{:>4}|{x}'.format('a', x=[1]) }}", "   a|[1]"), ("{{ 'ab'.center(6) }}", "  ab  "),
    ("{{ ['a', 'b'] | join(', ') }}{{ ','.join('ab') }}", "a, ba,b"), ("{{ 'aXb' | replace('X', '--') }}", "a--b"),
    ("{{ [1, 2] | sum }}{{ 2 ** 8 * 3 % 5 + 1 }}", "34"), ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
    ("{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{% call f('a') %}b{% endcall %}{{ f(1) + f(2) }}",
     "<ab><1><2>"),
    ("{% for i in [[1, []]] recursive %}{{ i[0] }}{{ loop(i[1]) }}{% else %}.{% endfor %}", "1."),
])
def test_what_templates_do_still_works(template, expected):
    assert JinjaTemplate(template, "good.jinja").render({"messages": [1, 2]}) == expected


def test_a_long_chat_is_within_the_limits():
    text = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m.content | trim + '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 50}] * 5000
    rendered = JinjaTemplate(text, "good.jinja").render({"messages": messages})
    assert rendered.count("<|user|>") == 5000

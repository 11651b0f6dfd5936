"""A template that prints the clock prints the same date for everybody."""

from datetime import date
from typing import Any

import pytest

from deepspec.chat.clock import DATE, Clock
from deepspec.chat.template import ChatTemplate
from tests.given.some import some
from tests.given.targets import tiny

TURNS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
LLAMA3 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}{{- 'Today Date: ' + date_string + '\n' }}" + TURNS
)
BARE = "{%- set day = strftime_now('%-d %B %Y, %H:%M:%S') %}\n\nNow {{ day }}\n" + TURNS
LATE = "{% if tools %}{{ strftime_now('%Y-%m-%d') }}{% endif %}" + TURNS
HELLO = [{"role": "user", "content": "hello"}]


def chat(template: str) -> ChatTemplate:
    return ChatTemplate(tiny.tokenizer(template), frozenset({tiny.IM_END}), "test")


def text(template: str, **told: Any) -> str:
    found: str = tiny.tokenizer().decode(chat(template).prompt_ids(HELLO, **told))
    return found


def test_the_clock_stands_at_noon_of_the_date() -> None:
    assert text(BARE) == "\nNow 1 January 2026, 12:00:00\nuser: hello\n"
    assert text(BARE, day=date(2024, 2, 29)) == "\nNow 29 February 2024, 12:00:00\nuser: hello\n"
    assert text(LLAMA3) == "Today Date: 01 Jan 2026\nuser: hello\n"
    assert text(LATE, tools=[{"type": "function", "function": {"name": "f"}}]) == "2026-01-01user: hello\n"


def test_a_frozen_template_renders_like_the_library_but_for_the_date() -> None:
    tokenizer = tiny.tokenizer(BARE.replace("strftime_now('%-d %B %Y, %H:%M:%S')", "'1 January 2026, 12:00:00'"))
    assert chat(BARE).prompt_ids(HELLO) == tokenizer.apply_chat_template(HELLO, tokenize=True, return_dict=False)


@pytest.mark.parametrize(
    ("template", "clock"),
    [
        (TURNS, None),
        (LLAMA3, Clock(variable="date_string", form="%d %b %Y")),
        (BARE, Clock(variable=None)),
        (LATE, Clock(variable=None)),
        (LATE + "{{ other }}", Clock(variable=None)),
    ],
)
def test_how_a_template_is_kept_from_the_clock(template: str, clock: Clock | None) -> None:
    assert chat(template).clock == clock


def test_the_variable_tells_an_engine_the_same_date() -> None:
    switches = some(chat(LLAMA3).clock).switches(date(2025, 12, 24))
    assert switches == {"date_string": "24 Dec 2025"}
    assert text(LLAMA3, switches=switches, day=DATE) == text(LLAMA3, day=date(2025, 12, 24))


def test_a_row_is_rendered_with_the_date_that_it_names() -> None:
    row = tiny.answered("r", "hi", "yo", date="2024-02-29")
    ends = BARE.replace("+ '\n'", "+ '<|im_end|>'") + "{% if add_generation_prompt %}assistant: {% endif %}"
    (sample,) = chat(ends).render(row).samples
    assert "29 February 2024" in tiny.tokenizer().decode(sample.input_ids)

"""The clock that chat templates read: one date for everybody, so that what is trained on is what the target saw.

A template that prints today's date (`strftime_now`) renders another prompt every day. Wherever this project renders
one, the clock stands still at noon of one date. An engine has a clock of its own: it is made to see the same date
through a variable of the template's own (`date_string` of Llama 3, say), which `Clock` knows, or else by being given
token ids instead of messages.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

import jinja2.meta
from jinja2 import Environment, TemplateError

from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row

DATE = date(2026, 1, 1)
"""The date that templates are given where nothing else is said."""

READS_CLOCK = "strftime_now"
"""The function by which a template reads the clock in transformers, vLLM, SGLang and llama.cpp."""

CODES = "deepspec_clock"
"""Variable in which a frozen template finds what each code of a format becomes."""

_FREEZE = (
    "{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}"
    f"{{%- for code in {CODES} -%}}{{%- set told.text = told.text.replace(code, {CODES}[code]) -%}}{{%- endfor -%}}"
    "{{- told.text -}}{%- endmacro -%}{{ '' }}"
)
"""Put before a template, it stands in for the function that reads the clock; the last part keeps the template's own
first newline."""

_FORMAT = re.compile(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)")
_LETTERS = "aAbBcdefGgHIjklmMnpsStTuUVwWxXyYzZ"
_ELSEWHERE = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "enable_thinking",
        "bos_token",
        "eos_token",
        "pad_token",
    }
)
"""Variables that mean something else."""

Messages = Sequence[Mapping[str, Any]]

RenderOnDay = Callable[[Messages, Messages | None, Mapping[str, Any], date], str]
"""`render(messages, tools, variables, day)` with the clock at noon of a day."""

_USER, _SYSTEM = {"role": "user", "content": "x"}, {"role": "system", "content": "y"}
_TOOL = {"type": "function", "function": {"name": "f", "description": "g", "parameters": {"type": "object"}}}
_PROBES: Sequence[tuple[Messages, Messages | None]] = (
    ([_USER], None),
    ([_SYSTEM, _USER], None),
    ([_USER], [_TOOL]),
    ([_SYSTEM, _USER], [_TOOL]),
)
"""Conversations and tools: a template may print the date in some of them only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """How a template that reads the clock is kept from it."""

    variable: str | None
    """A variable of the template's own whose value it prints instead of the date; None where it has none."""
    form: str = ""
    """The format in which it wants that."""

    def switches(self, day: date) -> dict[str, str]:
        """Return what an engine's template is told to print a date; nothing where it cannot be told."""
        return {} if self.variable is None else {self.variable: _noon(day).strftime(self.form)}


def frozen(template: str) -> str:
    """Return a chat template in which the clock stands still; it reads `codes(day)` from the variable `CODES`."""
    return _FREEZE + template


def codes(day: date) -> dict[str, str]:
    """Return what each code of a date's format becomes at noon of a day, longest codes first."""
    noon = _noon(day)
    plain = {f"%{letter}": noon.strftime(f"%{letter}") for letter in _LETTERS}
    bare = {f"%-{letter}": noon.strftime(f"%-{letter}") for letter in "dmyHIMSj"}
    return {**bare, **plain}


def clock_of(template: str, render: RenderOnDay) -> Clock | None:
    """Return how a template reads the clock; None where it does not.

    Args:
        template: its text.
        render: renders messages with it.
    """
    if READS_CLOCK not in template:
        return None
    forms = [found[1] for found in _FORMAT.findall(template)]
    for name in _own_variables(template):
        for form in dict.fromkeys(forms):
            found = Clock(variable=name, form=form)
            if _keeps_from_clock(found, render):
                return found
    return Clock(variable=None)


def _keeps_from_clock(clock: Clock, render: RenderOnDay) -> bool:
    """Return whether a template prints the date elsewhere, and not once it is told one by its variable."""
    later = DATE + timedelta(days=40)
    today = [_rendered(render, probe, {}, DATE) for probe in _PROBES]
    untold = [_rendered(render, probe, {}, later) for probe in _PROBES]
    told = [_rendered(render, probe, clock.switches(DATE), later) for probe in _PROBES]
    return told == today != untold


def _rendered(render: RenderOnDay, probe: tuple[Messages, Messages | None], told: Mapping[str, Any], day: date) -> str:
    try:
        with one_row("template_refuses"):
            return render(*probe, told, day)
    except RowError as error:  # no system role, say: whatever the day
        return f"refused: {error}"


def _own_variables(template: str) -> Iterator[str]:
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(_without_generation(template)))
    except TemplateError:  # a dialect of its own: no variable is known
        return
    yield from sorted(names - _ELSEWHERE - {READS_CLOCK})


def _without_generation(template: str) -> str:
    """Return a template without the tags that transformers adds to the language."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12))

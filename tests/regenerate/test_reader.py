"""What the target's tokenizer says about prompts and answers."""

from deepspec.placement import Placement
from deepspec.regenerate.reader import TargetReader
from tests.regenerate.conftest import TARGET
from tests.regenerate.test_parts import answer


class Words:
    """A tokenizer with one token per word, and one for each message's role."""

    chat_template = "words"

    def encode(self, text, add_special_tokens):
        return text.split()

    def get_chat_template(self, chat_template, tools):
        return self.chat_template

    def apply_chat_template(self, messages, **options):
        return [word for message in messages for word in [message["role"], *message["content"].split()]]


def row(content, tokens, **more):
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    return answer("a", messages=said, usage={"prompt_tokens": 2, "completion_tokens": tokens}, **more)


def test_a_target_elsewhere_tells_nothing():
    reader = TargetReader.of(TARGET, Placement())
    assert reader.prompt_tokens([{"role": "user", "content": "Hi"}]) is None
    assert reader.drift(row("one two", 4)) == frozenset()


def test_a_prompt_is_counted_as_the_template_renders_it():
    assert TargetReader(Words()).prompt_tokens([{"role": "user", "content": "two words"}]) == 3


def test_drift_is_another_number_of_tokens_than_the_engine_counted():
    reader = TargetReader(Words())
    assert reader.drift(row("one two", 3)) == frozenset()  # two words and the stop token
    assert reader.drift(row("one two", 4)) == {"drifted"}
    assert reader.drift(row("one two", 2, finish_reasons=["length"])) == frozenset()  # cut: no stop token


def test_drift_of_more_than_plain_text_cannot_be_told():
    assert TargetReader(Words()).drift(row("one two", 9, reasoning={"1": "hm"})) == frozenset()
    assert TargetReader(Words()).drift(row("one two", 9, token_ids=[[1] * 9])) == frozenset()


def test_a_prompt_that_the_engine_renders_otherwise_is_told():
    """As an engine does that puts the tools of a conversation elsewhere than the target's own template."""
    two_turns = [*row("one", 4)["messages"], {"role": "user", "content": "and?"}, {"role": "assistant", "content": "b"}]
    usage = {"prompt_tokens": 2 + 6, "completion_tokens": 4}  # a word and its role, then three of each
    told = answer("a", messages=two_turns, generated=[1, 3], finish_reasons=["stop"] * 2, usage=usage)
    assert TargetReader(Words()).drift(told) == frozenset()
    assert TargetReader(Words()).drift({**told, "usage": {**usage, "prompt_tokens": 9}}) == {"prompt_drifted"}
    assert TargetReader(Words()).drift({**told, "usage": {**usage, "prompt_tokens": 0}}) == frozenset()

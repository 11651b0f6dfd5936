"""Chat templates of many kinds, written after those of real targets, each with a tokenizer that knows its signs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from deepspec.chat.template import ChatTemplate
from tests.given.targets import tiny

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of template: `templates/NAME.jinja`."""

    name: str
    stop: str
    """Ends an answer."""
    signs: tuple[str, ...] = ()
    """Other special tokens."""
    stops: tuple[str, ...] = ()
    """Other tokens that end an answer."""
    bos: str | None = None
    words: tuple[str, ...] = ("<think>", "</think>")
    """Tokens of their own that are not special: an engine leaves them in the text."""
    header: str = ""
    """What the target writes before an answer and engines leave out of its text."""
    footer: str = ""
    """The same behind it."""
    system: bool = True
    """Whether it takes a system message."""
    tools: bool = True
    """Whether it renders calls of tools."""
    calls: int = 9
    """Calls that one answer may hold."""
    beside_calls: bool = True
    """Whether it renders content beside calls."""
    reasoning: bool = False
    """Whether it renders reasoning that is given apart."""
    opens_reasoning: bool = False
    """Whether its generation prompt opens the reasoning, so that only answers which hold it can be read."""

    @property
    def template(self) -> str:
        return (FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        fast = tiny.tokenizer(self.template)
        fast.add_tokens(list(self.words))
        more = [self.stop, *self.stops, *self.signs, *([self.bos] if self.bos else [])]
        fast.add_special_tokens({"additional_special_tokens": more})
        fast.eos_token = self.stop
        fast.bos_token = self.bos
        return fast

    def chat(self, **options: Any) -> ChatTemplate:
        tokenizer = self.tokenizer()
        stops = frozenset(tokenizer.convert_tokens_to_ids([self.stop, *self.stops]))
        return ChatTemplate(tokenizer, stops, self.name, **{"vocab_size": len(tokenizer), **options})


_CHATML: dict[str, Any] = {"stop": "<|im_end|>", "signs": ("<|im_start|>", "<|endoftext|>")}
_DEEPSEEK = (
    "<|User|>",
    "<|Assistant|>",
    "<|tool_calls_begin|>",
    "<|tool_calls_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_sep|>",
    "<|tool_output_begin|>",
    "<|tool_output_end|>",
)

_KIMI = (
    "<|im_system|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)

KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="qwen2_5", **_CHATML),
        Kind(name="qwen3", reasoning=True, **_CHATML),
        Kind(name="qwen3_coder", **_CHATML),
        Kind(
            name="llama3_1",
            stop="<|eot_id|>",
            stops=("<|eom_id|>",),
            signs=("<|start_header_id|>", "<|end_header_id|>"),
            bos="<|begin_of_text|>",
            calls=1,
            beside_calls=False,
        ),
        Kind(name="hermes", bos="<|begin_of_text|>", beside_calls=False, **_CHATML),
        Kind(name="deepseek_v3", stop="<|end_of_sentence|>", signs=_DEEPSEEK, bos="<|begin_of_sentence|>"),
        Kind(
            name="deepseek_r1",
            stop="<|end_of_sentence|>",
            signs=_DEEPSEEK,
            bos="<|begin_of_sentence|>",
            opens_reasoning=True,
        ),
        Kind(
            name="mistral",
            stop="</s>",
            bos="<s>",
            signs=(
                "[INST]",
                "[/INST]",
                "[TOOL_CALLS]",
                "[AVAILABLE_TOOLS]",
                "[/AVAILABLE_TOOLS]",
                "[TOOL_RESULTS]",
                "[/TOOL_RESULTS]",
            ),
            beside_calls=False,
        ),
        Kind(name="granite", stop="<|end_of_text|>", signs=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")),
        Kind(name="smollm3", tools=False, **_CHATML),
        Kind(
            name="gpt_oss",
            stop="<|return|>",
            stops=("<|call|>",),
            signs=("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
            words=(),
            header="<|channel|>final<|message|>",
            calls=1,
            beside_calls=False,
            reasoning=True,
        ),
        Kind(
            name="gemma",
            stop="<end_of_turn>",
            signs=("<start_of_turn>",),
            bos="<bos>",
            system=False,
            tools=False,
        ),
        Kind(
            name="cohere",
            stop="<|END_OF_TURN_TOKEN|>",
            signs=(
                "<|START_OF_TURN_TOKEN|>",
                "<|USER_TOKEN|>",
                "<|CHATBOT_TOKEN|>",
                "<|SYSTEM_TOKEN|>",
                "<|START_RESPONSE|>",
                "<|END_RESPONSE|>",
                "<|START_ACTION|>",
                "<|END_ACTION|>",
                "<|START_THINKING|>",
                "<|END_THINKING|>",
                "<|START_TOOL_RESULT|>",
                "<|END_TOOL_RESULT|>",
            ),
            bos="<BOS_TOKEN>",
            header="<|START_RESPONSE|>",
            footer="<|END_RESPONSE|>",
            beside_calls=False,
        ),
        Kind(
            name="phi3",
            stop="<|end|>",
            stops=("<|endoftext|>",),
            signs=("<|system|>", "<|user|>", "<|assistant|>"),
            tools=False,
        ),
        Kind(name="phi4", signs=("<|im_start|>", "<|im_sep|>"), stop="<|im_end|>", tools=False),
        Kind(
            name="glm4_5",
            stop="<|user|>",
            stops=("<|observation|>", "<|endoftext|>"),
            signs=("[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
            reasoning=True,
        ),
        Kind(name="llama2", stop="</s>", bos="<s>", tools=False),
        Kind(name="zephyr", stop="</s>", bos="<s>", tools=False),
        Kind(name="olmo2", stop="<|endoftext|>", bos="<|endoftext|>", tools=False),
        Kind(name="exaone", stop="[|endofturn|]", tools=False),
        Kind(name="kimi_k2", stop="<|im_end|>", signs=_KIMI),
        Kind(
            name="minimax_m2",
            stop="[e~[",
            signs=("]~!b[", "]~b]", "<minimax:tool_call>", "</minimax:tool_call>"),
            opens_reasoning=True,
        ),
        Kind(name="nemotron", reasoning=True, tools=False, **_CHATML),
        Kind(
            name="lfm2",
            bos="<|startoftext|>",
            signs=("<|im_start|>", "<|tool_list_start|>", "<|tool_list_end|>"),
            stop="<|im_end|>",
            tools=False,
        ),
        Kind(
            name="seed_oss",
            stop="<seed:eos>",
            bos="<seed:bos>",
            words=("<seed:think>", "</seed:think>"),
            reasoning=True,
            tools=False,
        ),
        Kind(name="ernie4_5", stop="<|end_of_sentence|>", signs=("<|begin_of_sentence|>",), tools=False),
        Kind(name="smolvlm", stop="<end_of_utterance>", signs=("<|im_start|>", "<image>"), tools=False),
        Kind(name="qwen2_5_vl", tools=False, **_CHATML),
        Kind(name="gemma3", stop="<end_of_turn>", signs=("<start_of_turn>",), bos="<bos>", tools=False),
        Kind(
            name="gemma4",
            stop="<turn|>",
            stops=("<|tool_response>",),
            signs=("<|turn>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<tool_response|>"),
            bos="<bos>",
            beside_calls=False,
            reasoning=True,
        ),
        Kind(
            name="deepseek_v3_1",
            stop="<|end_of_sentence|>",
            signs=_DEEPSEEK,
            bos="<|begin_of_sentence|>",
            tools=False,
        ),
        Kind(name="falcon3", stop="<|endoftext|>", signs=("<|user|>", "<|assistant|>", "<|system|>"), tools=False),
        Kind(name="yi", tools=False, **_CHATML),
    )
}

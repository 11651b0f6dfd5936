"""The target's own files: weights, tokenizer, chat template."""

from collections.abc import Iterator

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from deepspec.chat.template import ChatTemplate
from deepspec.errors import RowError, TargetError
from deepspec.families import TargetShape
from deepspec.families.ends import EMBEDDING
from deepspec.formats.tensor_heads import listed
from deepspec.lines.bad_rows import one_row
from deepspec.plan.known import Known
from deepspec.plan.resolve import check_gguf
from deepspec.plan.rules.seen import LATER, Seen
from deepspec.target.tokens import check_vocabulary, has_template, read_stops


def weights(known: Known) -> Seen:
    """Hold the weights' files against their index, their headers, their sizes and the config."""
    source, target = known.plan.target, known.target
    if target is None and source.on_hub:
        _check_hub_id(source.model)
    if target is None:
        return Seen(f"{source.name}: will be fetched or converted by the first run")
    if known.plan.draft is None and target.ends is None:
        raise TargetError(f"target {target.folder}: no tensor named …{EMBEDDING} in its safetensors files")
    check_gguf(known.plan, target.shape)
    told = f"{target.folder}: {target.shape.model_type}, {target.parameters:,} parameters"
    return Seen(told, (*target.shape.told, *_read_again(target.shape)))


def tokenizer(known: Known) -> Seen:
    """Hold the tokenizer against the rows of the embedding."""
    if known.target is None:
        return LATER
    if known.tokenizer is None:
        return Seen("no tokenizer.json: seen when the target is loaded")
    return Seen(check_vocabulary(known.tokenizer, known.target.rows, str(known.target.folder)))


def chat_template(known: Known) -> Seen:
    """Let the chat template render one user turn, and see where an answer ends."""
    if known.files is None:
        return LATER
    if not has_template(known.files.folder):
        advice = "give one in an own preset (target.chat_template), or choose the instruction-tuned version"
        raise TargetError(f"target {known.plan.target.name} ({known.files.folder}) has no chat template; {advice}")
    if known.chat is None:
        return Seen("there is one: tried when the target is loaded")
    ids = known.chat.prompt_ids([{"role": "user", "content": "tea"}])
    return Seen(f"renders a user turn of one word as {len(ids)} tokens", tuple(_endless(known, known.chat)))


def _read_again(shape: TargetShape) -> Iterator[str]:
    """Tell what decoding here costs where setting a length takes no tokens back."""
    if shape.reads_again:
        yield (
            f"{shape.top_model_type}: its memory ({listed(shape.reads_again)}) gives no tokens back: in evaluation "
            "each round reads the accepted ones again, a second pass of the target; of questions that are decoded "
            "together, a pass for each number of tokens that some of them accepted"
        )


def _endless(known: Known, chat: ChatTemplate) -> Iterator[str]:
    """Tell where an answer that comes as text would end with no stop token. One with token ids brings its own."""
    if known.plan.draft is not None or known.plan.dataset.cache is not None:
        return
    if known.files is None or read_stops(known.files.folder, known.tokenizer) is None:
        return
    try:
        with one_row("template"):
            _ = chat.stop_id
    except (RowError, TargetError) as error:
        yield f"answers without token ids of the engine cannot be trained on: {error}"


def _check_hub_id(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise TargetError(f"target {name}: neither a folder here nor a hub id ORG/MODEL; check the name") from error

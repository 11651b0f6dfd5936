"""A target's tokenizer and chat template without its weights and without torch: what a plan is checked by."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from deepspec.chat.template import ChatTemplate
from deepspec.errors import RowError, TargetError
from deepspec.formats.tensor_heads import check_pointer, listed, read_object
from deepspec.lines.bad_rows import one_row
from deepspec.target.identity import TOKENIZER_FILES, read_template

TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", GENERATION)
_NEEDED = ("bos_token", "eos_token", "unk_token")
"""Tokens that conversations hold, whatever their text."""

_PROBE = "tea"

NO_END = "the target names no end token; set eos_token_id in its generation_config.json"

Stamps = tuple[tuple[str, int, int], ...]


def read_tokenizer(folder: Path) -> Any | None:
    """Return the tokenizer in a folder as transformers loads it; None where there is no tokenizer.json.

    Raises:
        TargetError: its files cannot be read.
    """
    for name in _CONFIGS:
        if (folder / name).exists():
            read_object(folder / name)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            check_pointer(folder / name)
    if not (folder / TOKENIZER).exists():
        return None
    try:
        with one_row("tokenizer"):
            return _loaded(folder, _stamps(folder))
    except (RowError, OSError) as error:
        raise TargetError(f"target {folder}: its tokenizer cannot be read: {error}; fetch or save it again") from error


@lru_cache(maxsize=2)
def _loaded(folder: Path, stamps: Stamps) -> Any:
    """Return the tokenizer in a folder; a run looks at it several times, and reads it once."""
    del stamps
    read_object(folder / TOKENIZER)  # it says best what is wrong with the file
    from transformers import PreTrainedTokenizerFast  # half a second: only where a target is looked at

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def _stamps(folder: Path) -> Stamps:
    """Return name, size and time of the files that a tokenizer may be read from."""
    small = (path for path in folder.rglob("*") if path.suffix != ".safetensors" and path.is_file())
    return tuple(sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in small))


def check_vocabulary(tokenizer: Any, rows: int, where: str) -> str:
    """Return how many tokens a tokenizer knows, in words.

    Args:
        tokenizer: of transformers.
        rows: of the target's embedding.
        where: the target, for messages.

    Raises:
        TargetError: conversations hold tokens that have no row.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    count = max(vocabulary.values(), default=-1) + 1
    if count <= rows:
        return f"{count:,} tokens, {rows:,} rows in the embedding"
    beyond = sorted(token for token, token_id in vocabulary.items() if token_id >= rows)
    spared = _spared(tokenizer)
    if all(token in spared for token in beyond):
        return f"{rows:,} rows in the embedding; none for {listed(beyond)}, which no conversation may hold"
    raise TargetError(
        f"target {where}: the tokenizer knows {count} tokens, the embedding has {rows} rows (there is none for "
        f"{listed([token for token in beyond if token not in spared])}); take the tokenizer that belongs to the "
        "weights, or resize the embedding (resize_token_embeddings) and save the target again"
    )


def read_chat(folder: Path, tokenizer: Any) -> ChatTemplate:
    """Return how a target reads a conversation, once it has read one.

    Raises:
        TargetError: it has no chat template, or one that fails or loses what a user says, or no end token.
    """
    template = ChatTemplate(tokenizer, read_stops(folder, tokenizer) or frozenset(), str(folder))
    try:
        with one_row("template"):
            ids = template.prompt_ids([{"role": "user", "content": _PROBE}])
            text = str(tokenizer.decode(ids))
    except RowError as error:
        raise TargetError(f"target {folder}: its chat template cannot render one user turn: {error}") from error
    if _PROBE not in text.lower():
        raise TargetError(f"target {folder}: its chat template leaves out what a user says, it gives {text!r}")
    return template


def read_stops(folder: Path, tokenizer: Any) -> frozenset[int] | None:
    """Return the tokens that end an answer, as `load_target` will find them; None where only transformers can tell.

    Raises:
        TargetError: none is named, or what is named is no token id.
    """
    generation = folder / GENERATION
    told = read_object(generation if generation.exists() else folder / "config.json")
    found = told.get("eos_token_id")
    if found is None and not generation.exists():
        return None  # each class of config has a default of its own
    found = tokenizer.eos_token_id if found is None else found
    ids = found if isinstance(found, list) else [found]
    if ids == [None]:
        raise TargetError(NO_END)
    if not ids or not all(type(each) is int for each in ids):
        raise TargetError(f"target {folder}: eos_token_id is {found!r}, wanted a token id or a list of them")
    return frozenset(ids)


def has_template(folder: Path) -> bool:
    """Return whether a chat template lies in a folder."""
    return bool(read_template(folder))


def _spared(tokenizer: Any) -> frozenset[str]:
    """Return tokens that stand for padding, images or sound: named as such, and not written by the chat template."""
    named = {key: value for key, value in dict(tokenizer.init_kwargs).items() if str(key).endswith("_token")}
    named |= dict(tokenizer.special_tokens_map)
    needed = {str(named.get(key)) for key in _NEEDED}
    template = str(tokenizer.chat_template or "")
    tokens = {str(value) for value in named.values() if isinstance(value, str) or hasattr(value, "content")}
    return frozenset(token for token in tokens - needed if token not in template)

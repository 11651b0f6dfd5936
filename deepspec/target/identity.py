"""Which target it is: hashes, so that a path never enters an address and a changed file always does."""

import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from deepspec.disk import checksum
from deepspec.errors import TargetError
from deepspec.families import is_general
from deepspec.families.general import PROOF
from deepspec.formats.tensor_heads import check_pointer, read_object
from deepspec.specs import TargetId, canonical_json

_VOLATILE = frozenset({"transformers_version", "_name_or_path", "_model_name_or_path", "_from_model_config"})
"""Config keys that say who wrote the file, not what the model is."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")

_TOKENIZER_KEYS = (
    "add_bos_token",
    "add_eos_token",
    "added_tokens_decoder",
    "bos_token",
    "eos_token",
    "tokenizer_class",
)
"""Keys of tokenizer_config.json that change token ids."""


def identify(folder: Path, memo: Path | None = None) -> TargetId:
    """Return which target lies in a folder: the same hashes wherever a copy of it lies.

    Args:
        folder: config, safetensors, tokenizer and chat template.
        memo: JSON file that remembers the hash of big files by path, size and time, so that a second call is quick.

    Raises:
        TargetError: config, weights or tokenizer are missing.
    """
    folder = folder.resolve()
    return TargetId(
        config=_config_hash(folder),
        weights=_weights_hash(folder, memo),
        tokenizer=_tokenizer_hash(folder),
        template=_hash([read_template(folder)]),
        proof=_proof(folder),
    )


def differing(folder: Path, other: TargetId, known: TargetId | None = None) -> list[str]:
    """Return in what the target in a folder differs from another one.

    Args:
        folder: of the target.
        other: the other one.
        known: which one lies in the folder; None: its weights are not looked at, for hashing them takes long.
    """
    found = known or TargetId(
        config=_config_hash(folder),
        weights=other.weights,
        tokenizer=_tokenizer_hash(folder),
        template=_hash([read_template(folder)]),
        proof=other.proof,
    )
    return [name for name in TargetId.model_fields if getattr(found, name) != getattr(other, name)]


def read_template(folder: Path) -> str:
    """Return the chat template that lies in a folder, as JSON where there are several; empty where there is none.

    Raises:
        TargetError: it cannot be read.
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    found = {name: _read_text(path) for name, path in files.items() if path.is_file()}
    if list(found) == ["default"]:
        return found["default"]
    template: Any = found or _read_json(folder / "tokenizer_config.json").get("chat_template") or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _config_hash(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    if not config:
        raise TargetError(f"target {folder}: no config.json; wanted a folder written by save_pretrained")
    stops = _read_json(folder / "generation_config.json").get("eos_token_id")
    return _hash([{key: value for key, value in config.items() if key not in _VOLATILE}, stops])


def _proof(folder: Path) -> str:
    """Return what a target has to prove: the general reading's proof where it is read so."""
    return PROOF if is_general(_read_json(folder / "config.json")) else ""


def _weights_hash(folder: Path, memo: Path | None) -> str:
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        raise TargetError(f"target {folder}: no *.safetensors; save it again with safe_serialization=True")
    return _hash(_checksums(files, memo))


def _tokenizer_hash(folder: Path) -> str:
    present = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        raise TargetError(f"target {folder}: no tokenizer; wanted one of {', '.join(TOKENIZER_FILES)}")
    config = _read_json(folder / "tokenizer_config.json")
    kept = {key: config[key] for key in _TOKENIZER_KEYS if key in config}
    return _hash([kept, *([path.name, _checksum(path)] for path in present)])


def _checksums(files: Iterable[Path], memo: Path | None) -> list[list[str]]:
    known = _known(memo) if memo is not None else {}
    result: list[list[str]] = []
    for path in files:
        stat = path.stat()
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in known:
            known[key] = _checksum(path)
            if memo is not None:
                _remember(memo, key, known[key])
        result.append([path.name, known[key]])
    return result


def remembered_checksum(path: Path, memo: Path | None) -> str:
    """Return the hash of a big file, which a memo remembers as `identify` has it do.

    Raises:
        TargetError: it cannot be read.
    """
    ((_, found),) = _checksums([path], memo)
    return found


def _checksum(path: Path) -> str:
    try:
        return checksum(path)
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {error.strerror}; check the folder") from error


def _remember(memo: Path, key: str, value: str) -> None:
    """Add one entry; a lost race, or a folder that cannot be written, costs one hash later, never a wrong one."""
    temporary = memo.with_name(f".{memo.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_known(memo), key: value}, indent=1, sort_keys=True))
        temporary.replace(memo)


def _known(memo: Path) -> dict[str, Any]:
    """Return what a memo remembers: nothing where it cannot be read, for it only saves time."""
    try:
        return _read_json(memo)
    except TargetError:
        return {}


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _read_text(path: Path) -> str:
    check_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} cannot be read: {error}; fetch or save the target again") from error


def _hash(value: Any) -> str:
    return xxhash.xxh3_128(canonical_json(value)).hexdigest()

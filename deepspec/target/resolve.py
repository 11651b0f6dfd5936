"""Make a target ready: fetch it from the hub, or turn a GGUF file into safetensors, once.

A prepared folder is written under a temporary name and renamed when it is complete, so that a killed run leaves
nothing that looks ready, and of two runs that prepare the same target one wins and the other uses its folder.
"""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf as gguf_package
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepspec.errors import TargetError
from deepspec.target.gguf import mend_split
from deepspec.target.source import MARK, TargetFiles, TargetSource, checked_folder, find_target, parts, prepared_folder

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def resolve_target(source: TargetSource, models: Path, name: str) -> TargetFiles:
    """Return the target as local files, preparing them the first time.

    Args:
        source: where the target comes from.
        models: folder of prepared targets.
        name: name of the target, of the preset say.

    Raises:
        TargetError: it is not there, cannot be fetched, or is no causal language model.
    """
    ready = find_target(source, models, name)
    if ready is not None:
        return ready
    if source.plain:
        return TargetFiles(folder=_fetch(source))
    if source.on_hub:  # the fetched folder is that of one commit, so another commit is prepared anew
        return resolve_target(source.but(model=str(_fetch(source)), revision=None), models, name)
    models.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=models, prefix=f".{name}-"))
    work.chmod(0o755)
    try:
        gguf = _convert(source, work) if source.is_gguf else _link(source, work)
        _override(source, work)
        (work / MARK).write_text(json.dumps({"source": source.told(), "gguf": gguf}, indent=1))
        _take_name(work, prepared_folder(source, models, name))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return resolve_target(source, models, name)


def _fetch(source: TargetSource) -> Path:
    if source.is_local:
        return checked_folder(source)
    where = f"target {source.model} on the Hugging Face hub"
    try:
        folder = Path(snapshot_download(source.model, revision=source.revision, allow_patterns=_HUB_FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        advice = "connect, or give a local folder with --target PATH"
        raise TargetError(f"{where}: not in the local cache and the hub cannot be reached; {advice}") from error
    except HFValidationError as error:
        raise TargetError(f"{where}: neither a folder here nor a hub id ORG/MODEL; check the name") from error
    except HfHubHTTPError as error:
        advice = "check the name and revision; for a gated model accept its terms and log in with: hf auth login"
        raise TargetError(f"{where}: {_first_line(error)}; {advice}") from error
    return checked_folder(source.but(model=str(folder)))


def _link(source: TargetSource, work: Path) -> str:
    """Fill a folder with links to the files of a target whose template or stop tokens are replaced."""
    for path in sorted(_fetch(source).iterdir()):
        if path.is_file():
            (work / path.name).symlink_to(path.resolve())
    return ""


def _convert(source: TargetSource, work: Path) -> str:
    """Join the GGUF file into a folder and save it there as safetensors, in fp32: no value is rounded."""
    pieces = parts(source)
    name = pieces[0].name.split(".gguf")[0] + ".gguf"
    with (work / name).open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as file:
                shutil.copyfileobj(file, joined, 1 << 22)
    try:
        with _read_once():
            tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=name)
            model: Any = AutoModelForCausalLM.from_pretrained(work, gguf_file=name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, NotImplementedError, struct.error) as error:
        advice = "check that the file is whole and its architecture one that transformers reads from GGUF"
        raise TargetError(f"target {name}: transformers cannot read it: {_first_line(error)}; {advice}") from error
    mend_split(tokenizer, work / name)
    model.hf_quantizer = None  # else save_pretrained refuses: the weights are plain fp32 by now
    if "quantization_config" in vars(model.config):
        del model.config.quantization_config
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    return name


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a file's header, and make its table of names, once: it asks for the one three times, and
    for the other at every module, which together took most of the time that a small target was prepared in."""
    wanted = {name: getattr(gguf_package, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, call in wanted.items():
            setattr(gguf_package, name, cache(call))
        yield
    finally:
        for name, call in wanted.items():
            setattr(gguf_package, name, call)


def _override(source: TargetSource, work: Path) -> None:
    """Put the source's own chat template and stop tokens into a prepared folder."""
    if source.chat_template:
        _replace(work / "chat_template.jinja", source.chat_template)
    if source.stop_tokens:
        path = work / "generation_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        tokenizer = AutoTokenizer.from_pretrained(work)
        stops = [_token_id(tokenizer, token) for token in source.stop_tokens]
        config["eos_token_id"] = sorted({*_as_ids(config.get("eos_token_id")), *stops})
        _replace(path, json.dumps(config, indent=1))


def _as_ids(value: int | list[int] | None) -> list[int]:
    """Return the ids in an `eos_token_id` of a config: none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _token_id(tokenizer: Any, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise TargetError(f"stop token {token!r} is not in the tokenizer's vocabulary; check stop_tokens")
    return int(vocabulary[token])


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be a link into the hub's cache
    path.write_text(text, encoding="utf-8")


def _take_name(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError as error:
        if not (folder / MARK).is_file():  # else another run prepared the same target first
            raise TargetError(f"target folder {folder} cannot be written: {error}; remove it and run again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

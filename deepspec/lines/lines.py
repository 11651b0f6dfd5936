"""The lines of a file: opened where it lies, decompressed, cut at every `\\n`, held one at a time.

Memory grows with the longest line and never with the file; a line beyond a limit is passed over unheld.
"""

import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import zstandard

from deepspec.errors import SourceError
from deepspec.lines.mistaken import check_bytes, check_text

LONGEST_LINE = 256 << 20
"""Bytes of a line of a user's file that is read, 256 MiB: what is parsed must be held. Our own files know no limit."""

HEAD = 1 << 16
"""First bytes of a file, by which one that holds no rows is recognised."""

_CHUNK = 1 << 16
_STEP = 1 << 10
"""Compressed bytes that are decompressed at once: what comes out may be a thousand times as much, of zstd more."""

_URL = re.compile(r"(?:[a-z0-9+.-]+::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Return whether a name is a URL; a local file may hold `::`, `?`, `%`, `[` or `://` in its name."""
    return isinstance(path, str) and _URL.match(path) is not None


def open_file(path: str | Path) -> BinaryIO:
    """Return the open binary file behind a path or a URL that fsspec knows.

    Raises:
        SourceError: it is not there, or cannot be opened.
    """
    try:
        return cast(BinaryIO, fsspec.open(path, "rb").open()) if is_url(path) else Path(path).open("rb")
    except FileNotFoundError as error:
        raise SourceError("no such file; check the path", path) from error
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be opened: {error}", path) from error


def read_lines(path: str | Path, form: str, longest: int | None = None) -> Iterator[bytes | int]:
    """Yield each line of a file as `split_lines` does.

    Args:
        path: local path or URL.
        form: `.jsonl`, `.jsonl.zst` or `.jsonl.gz`.
        longest: bytes of a line that is held; None: any.

    Raises:
        SourceError: no such file, a damaged or cut-off one, or one that holds something else than lines in UTF-8.
    """
    head, chunks = _peeked(_decompressed(path, form))
    check_text(head, form, path)
    return split_lines(chunks, longest)


def split_lines(chunks: Iterable[bytes], longest: int | None = None) -> Iterator[bytes | int]:
    """Yield each line without its `\\n`; of one that is longer than `longest` bytes, only how many it has.

    Args:
        chunks: the file's bytes, cut anywhere.
        longest: bytes of a line that is held; None: any.
    """
    limit = sys.maxsize if longest is None else longest
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks:
        for number, piece in enumerate(chunk.split(b"\n")):
            if number:
                yield b"".join(pieces) if size <= limit else size
                pieces, size = [], 0
            size += len(piece)
            if size > limit:
                pieces = []
            elif piece:
                pieces.append(piece)
    if size:
        yield b"".join(pieces) if size <= limit else size


def _peeked(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, and all of them in chunks."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    return head[:HEAD], chain((head,), chunks)


def _decompressed(path: str | Path, form: str) -> Iterator[bytes]:
    """Yield the plain bytes of a file in chunks; a compressed file that ends too early is an error."""
    new = _DECOMPRESSORS[form]
    with open_file(path) as raw:
        head, chunks = _peeked(iter(lambda: raw.read(_CHUNK), b""))
        check_bytes(head, form, path)
        if new is None:
            yield from chunks
            return
        try:
            yield from _frames(chunks, new)
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise SourceError(f"damaged or cut off ({error}); fetch the file again", path) from error


def _frames(chunks: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    frame: Any = None
    for chunk in chunks:
        for start in range(0, len(chunk), _STEP):
            step = chunk[start : start + _STEP]
            while step:
                frame = frame or new()
                plain = frame.decompress(step)
                yield from (plain[at : at + _CHUNK] for at in range(0, len(plain), _CHUNK))
                step = frame.unused_data
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError("the last frame does not end")


_DECOMPRESSORS: dict[str, Callable[[], Any] | None] = {
    ".jsonl": None,
    ".jsonl.zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".jsonl.gz": lambda: zlib.decompressobj(wbits=31),
}

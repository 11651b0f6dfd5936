"""Files that hold no rows though their names say so: recognised by their first bytes, named with what mends them."""

import re
import shlex
from pathlib import Path

from deepspec.errors import SourceError

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark; it is passed over wherever a line begins with it, since joined files have it inside."""

_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE)

_MAGIC = {
    b"PAR1": ".parquet",
    b"\x1f\x8b": ".jsonl.gz",
    b"\x28\xb5\x2f\xfd": ".jsonl.zst",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
}
"""First bytes -> the ending that a file of rows would have, or what else it is."""

_ENCODINGS = (
    (re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff"), "UTF-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "UTF-16"),
    (re.compile(rb"(?:[^\0]\0\0\0){2}"), "UTF-32LE"),
    (re.compile(rb"(?:\0\0\0[^\0]){2}"), "UTF-32BE"),
    (re.compile(rb"(?:[^\0]\0){2}"), "UTF-16LE"),
    (re.compile(rb"(?:\0[^\0]){2}"), "UTF-16BE"),
)
"""Byte order marks first; without one, the NULs beside the ASCII signs with which every row begins."""

_TO_NEWLINES = r"tr \r \n"
_CR = re.compile(rb"\}[ \t]*\r\s*\{")
_UNPACKED = {".jsonl": "", ".jsonl.gz": "gzip -dc {name} | ", ".jsonl.zst": "zstd -dc {name} | "}


def check_bytes(head: bytes, form: str, path: str | Path) -> None:
    """Check that a file is what its name says.

    Args:
        head: its first bytes as they lie there.
        form: the ending of its name.
        path: where it lies.

    Raises:
        SourceError: it is a git-lfs pointer, a web page, or of another form.
    """
    if head.startswith(_LFS):
        raise SourceError("a git-lfs pointer, not the file itself; run git lfs pull where it was cloned", path)
    if _WEB_PAGE.match(head):
        raise SourceError("a web page, not a file of rows; fetch the file itself (its raw or download link)", path)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic) and kind != form:
            advice = f"give it a name that ends in {kind}" if kind.startswith(".") else "unpack it"
            raise SourceError(f"the name ends in {form}, but its bytes are {kind.removeprefix('.')}; {advice}", path)


def check_text(head: bytes, form: str, path: str | Path) -> None:
    """Check that a file's text is one JSON object a line in UTF-8, as far as its first bytes tell.

    Args:
        head: the first bytes of the text.
        form: the ending of its name.
        path: where it lies.

    Raises:
        SourceError: it is UTF-16 or UTF-32, a JSON list, objects over several lines, or has old Macintosh line ends.
    """
    for signs, encoding in _ENCODINGS:
        if signs.match(head):
            raise SourceError(f"{encoding}, not UTF-8; {_mend(path, form, f'iconv -f {encoding} -t UTF-8')}", path)
    text = head.removeprefix(BOM).lstrip()
    if _is_list(text):
        raise SourceError(f"a JSON list, not one object a line; {_mend(path, form, 'jq -c .[]')}", path)
    if text.partition(b"\n")[0].rstrip() == b"{":
        raise SourceError(f"JSON objects over several lines; {_mend(path, form, 'jq -c .')}", path)
    if b"\n" not in head and _CR.search(head):
        raise SourceError(cr_only(path, form), path)


def has_cr_ends(line: bytes) -> bool:
    """Return whether what should be one row is several that end in `\\r`."""
    return _CR.search(line) is not None


def cr_only(path: str | Path, form: str) -> str:
    """Return what is wrong with a file whose lines end in `\\r`, and what mends it."""
    return rf"its lines end in \r alone (old Macintosh), not in \n; {_mend(path, form, _TO_NEWLINES)}"


def _is_list(text: bytes) -> bool:
    """Return whether a text is one JSON list of objects, and not a line that happens to begin with a bracket."""
    if not text.startswith(b"["):
        return False
    line, _, rest = text.partition(b"\n")
    inner = line[1:].strip()
    if inner and not inner.startswith(b"{"):
        return False
    return not inner or not rest.strip() or inner.endswith((b",", b"{", b"["))


def _mend(path: str | Path, form: str, command: str) -> str:
    """Return the advice to pass a file's text through a command."""
    name = shlex.quote(Path(str(path)).name)
    words = " ".join(word if re.fullmatch(r"[\w.-]+", word) else f"'{word}'" for word in command.split())
    unpacked = _UNPACKED[form].format(name=name)
    return f"mend it with: {unpacked}{words}{'' if unpacked else f' < {name}'} > mended.jsonl"

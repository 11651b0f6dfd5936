"""Import of caches in the public DeepSpec form, see public_form.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, PartMark
from deepspec.brought.public_form import FIELD_DTYPES, Looked, PublicCache
from deepspec.brought.spec import ImportSpec
from deepspec.errors import CaptureError, SourceError, UnknownNameError
from deepspec.lines.bad_rows import FROM_ROWS, rows_told
from deepspec.passes.samples import check_finite
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.records.batch import Record
from deepspec.report import Report
from deepspec.target.heads import read_target
from deepspec.target.identity import identify
from deepspec.target.load import Target, load_target
from deepspec.target.mask_token import mask_token_facts
from deepspec.target_cache.codec import CODECS, TOKENS_ONLY
from deepspec.target_cache.index import INDEX, write_index
from deepspec.target_cache.part import PartWriter, concatenate, part_name, raw_record_bytes
from deepspec.target_cache.totals import savings, totals


def import_spec(folder: Path, target: Path, options: Mapping[str, Any]) -> ImportSpec:
    """Return what importing the public cache of a folder depends on.

    Args:
        folder: the public cache.
        target: folder of the model whose states it holds.
        options: fields of `ImportSpec` that the user sets.

    Raises:
        UnknownNameError: there is no such codec.
        SourceError: the cache cannot be read.
        TargetError: the target cannot be read, or has another hidden size.
    """
    codec = options.get("codec", "bf16-zstd")
    if codec not in CODECS or codec == TOKENS_ONLY:
        raise UnknownNameError("codec", codec, set(CODECS) - {TOKENS_ONLY})
    cache, heads = PublicCache(folder), read_target(target)
    cache.check_target(heads.shape.num_layers, heads.shape.block.hidden_size, str(target))
    return ImportSpec.model_validate({"source": cache.source(), "target": identify(target), **options})


def run(
    spec: ImportSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Write a public cache in our form, part by part; one that was interrupted goes on. All samples are `train`.

    Every token and mask is looked at before the first part is written.

    Args:
        spec: codec and sizes.
        inputs: none.
        out: where to write.
        placement: where the public cache and the target lie.
        report: who listens.

    Raises:
        TargetError: the target has another hidden size.
        SourceError: the cache holds layers or tokens that the target has not, states that are NaN or infinite, or too
            little to train on.
    """
    del inputs
    cache = PublicCache(Path(placement.locations[spec.source]))
    target = load_target(placement.target_folder(spec.target.digest))
    cache.check_target(target.num_layers, target.hidden_size, str(target.folder))
    report.log(f"looking at every token and mask of {len(cache):,} samples")
    looked = cache.look(target.vocab_size, spec.min_supervised)
    _check_enough(looked, spec)
    report.log(rows_told(len(cache), len(looked.kept), looked.dropped, "samples"))
    facts = _facts(spec, cache, target)
    marks, done = [], 0
    for number, samples in enumerate(_parts(cache, looked.kept, spec.part_bytes)):
        marks.append(out.part(0, number) or _import_part(cache, samples, number, out, facts))
        done += len(samples)
        report.progress(done, len(looked.kept), "samples")
    columns = concatenate([mark.extra["columns"] for mark in marks])
    write_index(out.file(INDEX), columns)
    dropped = {f"dropped_{reason}": count for reason, count in looked.dropped.items()}
    rows = {"rows": len(cache), "samples": len(looked.kept), **dropped}
    counts = {**facts, **totals(marks, columns), "rows": rows}
    report.table("target-cache", savings(counts))
    return counts


def _check_enough(looked: Looked, spec: ImportSpec) -> None:
    left_out = looked.dropped.total()
    read = left_out + len(looked.kept)
    few = f"{left_out:,} of {read:,} samples have fewer than {spec.min_supervised} supervised tokens"
    if not looked.kept:
        raise SourceError(f"{few}: nothing can be trained on; make the cache again, its loss masks are empty")
    if read >= FROM_ROWS and left_out > spec.bad_share * read:
        raise SourceError(f"{few}, --bad-share allows {spec.bad_share:g} of them; make the cache again, or allow more")


def _parts(cache: PublicCache, numbers: Sequence[int], part_bytes: int) -> list[list[int]]:
    """Return numbers of samples in parts of at most so many bytes of states, in order."""
    parts: list[list[int]] = []
    room = 0
    for number in numbers:
        size = cache.state_bytes(number)
        if not parts or size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(number)
        room -= size
    return parts


def _import_part(
    cache: PublicCache, samples: Sequence[int], number: int, out: Out, facts: Mapping[str, Any]
) -> PartMark:
    path = out.scratch / f"{out.attempt}-{part_name(0, number)}"
    writer = PartWriter(path, 0, number, facts["codec"])
    raw, tokens = 0, 0
    for sample in samples:
        record = _finite(cache, sample)
        writer.add(record, "train")
        raw += raw_record_bytes(record)
        tokens += len(record.input_ids)
    writer.close()
    counts = {"rows": {"rendered_tokens": tokens}, "raw_bytes": raw, "stored_bytes": path.stat().st_size}
    extra = {"facts": dict(facts), "columns": writer.columns}
    return out.commit_part(0, number, {part_name(0, number): path}, counts, extra)


def _finite(cache: PublicCache, sample: int) -> Record:
    record = cache.record(sample)
    try:
        check_finite(record, cache.layers)
    except CaptureError as error:
        raise cache.wrong(sample, f"{str(error).split(';')[0]}; make the cache again") from error
    return record


def _facts(spec: ImportSpec, cache: PublicCache, target: Target) -> dict[str, Any]:
    return {
        "target": spec.target.model_dump(),
        "layers": list(cache.layers),
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        **mask_token_facts(target.tokenizer, target.vocab_size),
        "dtype": FIELD_DTYPES["hidden_dtype"],  # the public capture runs its target in it
        "codec": spec.codec,
    }

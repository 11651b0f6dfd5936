"""Speed for people: the sections of a report that say where a draft pays."""

from collections.abc import Mapping

from deepspec.formats.speed import Speed
from deepspec.page import under_load
from deepspec.page.page import Section


def warnings(speed: Speed) -> list[str]:
    """Return what must be seen first."""
    told = [speed.served.warning] if speed.served is not None and speed.served.warning else []
    told += under_load.warned(speed)
    if speed.batches and max(each.speedup for each in speed.batches) <= 1:
        told.append("On the machine measured below, plain decoding is faster at every batch size.")
    return told


def sections(speed: Speed, figures: Mapping[str, bytes]) -> list[Section]:
    """Return the report's parts.

    Args:
        speed: what was measured.
        figures: name -> PNG: `speed`, `load` and `served`, those that were drawn.
    """
    measured = f"{speed.hardware}; {speed.engine}; {speed.threads} threads; temperature {speed.temperature:g}."
    drawn = _some(figures, "speed", "speed by batch")
    parts = [Section(title="Speed", texts=[measured], rows=speed.rows(), figures=drawn)]
    if speed.loads:
        text = (
            "By replay of the evaluation's rounds with the pass and draft times of this machine; plain decoding is 1."
        )
        rows = [each.row() for each in speed.loads]
        drawn = _some(figures, "load", "speed-up by load")
        parts.append(Section(title="Expected speed-up by load", texts=[text], rows=rows, figures=drawn))
    if speed.served is not None:
        text = "The same questions at temperature 0, through an engine that serves the exported draft."
        parts.append(Section(title="Served by an engine", texts=[text], rows=[speed.served.row()]))
    if speed.under_load is not None:
        parts += under_load.sections(speed, _some(figures, "served", "speed by load, served"))
    return parts


def _some(figures: Mapping[str, bytes], name: str, title: str) -> dict[str, bytes]:
    return {title: figures[name]} if name in figures else {}

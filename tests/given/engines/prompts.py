"""Prompts to answer, and the stage that asks engines for answers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.asking.sampling import Sampling
from deepspec.lines.rows import write_rows
from deepspec.messages.conversations import published_rows
from deepspec.placement import Endpoint, Placement
from deepspec.publish import Out
from deepspec.regenerate.parts import Book
from deepspec.regenerate.run import run
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import Spec, TargetId
from deepspec.store import Store
from tests.given.heard import Heard

TARGET = TargetId(config="c", weights="w", tokenizer="t", template="p")


ROWS_PER_PART = 10


def prompt(sample_id: str, *texts: str, **more: Any) -> dict[str, Any]:
    """One prompt with a turn for each text."""
    slot = {"role": "assistant", "content": ""}
    turns = [message for text in texts for message in ({"role": "user", "content": text}, slot)]
    return {"id": sample_id, "split": "train", "source": "test", "messages": turns, **more}


def prompts(count: int) -> list[dict[str, Any]]:
    return [prompt(f"id-{number}", f"row {number}") for number in range(count)]


class Bench:
    """A store with prompts, and the stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.heard = Heard()
        self.spec = RegenerateSpec(
            target=TARGET, rows_per_part=ROWS_PER_PART, sampling=Sampling(max_tokens=16, temperature=0.7)
        )

    def publish(self, rows: Iterable[dict[str, Any]]) -> ArtifactRef:
        out = Out(self.store, "prompts", "0" * 32, {}, self.folder / "scratch")
        write_rows(out.file("part-00000.jsonl.zst"), rows)
        return out.publish(Spec(), 1, {})

    def out(self, ref: ArtifactRef) -> Out:
        return Out(self.store, "answers", "1" * 32, {"prompts": ref}, self.folder / "scratch")

    def placement(self, *urls: str, **more: Any) -> Placement:
        endpoints = tuple(Endpoint(url=url, model="tiny") for url in urls)
        return Placement(endpoints=endpoints, scratch=self.folder / "scratch", **more)

    def book(self, ref: ArtifactRef, out: Out) -> Book:
        """Return the accounts of a run over these prompts."""
        return Book(self.spec, open_artifact(self.store, ref, self.folder / "scratch"), out, lambda row: ())

    def regenerate(self, ref: ArtifactRef, placement: Placement) -> Artifact:
        out = self.out(ref)
        inputs = {"prompts": open_artifact(self.store, ref, self.folder / "scratch")}
        counts = run(self.spec, inputs, out, placement, self.heard)
        return open_artifact(self.store, out.publish(self.spec, 1, counts), self.folder / "scratch")

    def answers(self, rows: Iterable[dict[str, Any]], *urls: str, **more: Any) -> list[Any]:
        return list(published_rows(self.regenerate(self.publish(rows), self.placement(*urls, **more))))

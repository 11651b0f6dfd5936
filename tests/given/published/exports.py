"""Drafts and their exports, published."""

from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, open_artifact
from deepspec.export.run import run
from deepspec.export.spec import ExportSpec
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.specs import TargetId
from deepspec.store import Store
from tests.given.drafts.written import write_draft, write_target
from tests.given.heard import Heard

TARGET = TargetId(config="c", weights="w", tokenizer="t", template="p")
TRAINED = {"steps": 9, "tokens": 700, "parameters": 1234}


def publish_draft(store: Store, scratch: Path, kind: str) -> Artifact:
    """Return a published random draft."""
    out = Out(store, "draft", f"draft-{kind}", {}, scratch)
    out.file("x").unlink(missing_ok=True)
    write_draft(out.folder, kind)
    ref = out.publish(ExportSpec(), 1, {"target": TARGET.model_dump(), **TRAINED})
    return open_artifact(store, ref, scratch)


def publish_exports(tmp_path: Path, kind: str, **options: Any) -> tuple[Artifact, dict[str, Any], Heard]:
    store = Store(tmp_path / "store")
    draft = publish_draft(store, tmp_path / "scratch", kind)
    out = Out(store, "exports", f"exports-{kind}", {"draft": draft.ref}, tmp_path / "scratch")
    placement = Placement(locations={TARGET.digest: str(write_target(tmp_path / "target"))})
    spec = ExportSpec(target="ORG/target", gate=False, **options)
    report = Heard()
    counts = run(spec, {"draft": draft}, out, placement, report)
    return open_artifact(store, out.publish(spec, 1, counts), tmp_path / "scratch"), counts, report

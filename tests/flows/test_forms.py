"""`deepspec parity`: everything that is published about a draft is held together; a checkpoint needs a target."""

from dataclasses import replace
from pathlib import Path

import pytest

from cli.forms import gather, published_forms
from cli.published import named_draft
from deepspec.artifacts import Artifact
from deepspec.checkpoint.draft import describe, load_draft, save_draft
from deepspec.decoding.pair import draft_folder
from deepspec.errors import CheckpointError, SpecError
from deepspec.export.run import FORMS, read_source
from deepspec.export.run import run as export
from deepspec.export.spec import ExportSpec
from deepspec.publish import Out
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site, make_site
from tests.given.some import some

TEXT = "A text that is longer than two blocks of three tokens."


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="module")
def draft(site: Site) -> Artifact:
    """Return a published draft with two exported forms."""
    draft = site.open(site.train(SMALL.but(steps=1), "draft")[0])
    spec = ExportSpec(forms=["deepspec", "vllm"])
    out = Out(site.store, "exports", "forms", {"draft": draft.ref}, site.placement.scratch)
    out.publish(spec, 1, export(spec, {"draft": draft}, out, site.placement, Heard()))
    return draft


def test_all_forms_that_are_published_are_compared(site: Site, draft: Artifact) -> None:
    forms = published_forms(draft, site.placement, site.root / "target")
    found = forms.check(None)
    names = ["cached states", "cached last states", "stepwise states", "decoding form"]
    assert [each.name for each in found.comparisons] == [*names, "exported form deepspec", "exported form vllm"]
    assert found.passed, found.rows()
    cached = some(forms.cached)
    shifted = replace(
        forms, cached=replace(cached, stored=replace(cached.stored, hidden=cached.stored.hidden.roll(1, 0)))
    )
    assert [each.name for each in shifted.check(None).comparisons if not each.passed] == ["cached states"]


def test_a_checkpoint_is_compared_on_a_text_and_needs_its_own_target(
    site: Site, draft: Artifact, tmp_path: Path
) -> None:
    folder = draft_folder(draft, site.placement.scratch)
    found = gather(*named_draft(str(folder), site.root / "target", None)).check(TEXT)
    assert [each.name for each in found.comparisons] == ["stepwise states", "decoding form"]
    assert found.passed, found.rows()
    with pytest.raises(SpecError, match="give --target FOLDER"):
        gather(*named_draft(str(folder), None, None))
    with pytest.raises(SpecError, match="give a text"):
        gather(*named_draft(str(folder), site.root / "target", None)).check(None)
    model = load_draft(folder)
    model.config = replace(model.config, num_target_layers=9)
    save_draft(model, tmp_path)
    with pytest.raises(CheckpointError, match="num_target_layers 9, the target's is 6"):
        gather(*named_draft(str(tmp_path), Path(site.root / "target"), None)).check(TEXT)


def test_a_checkpoint_of_another_library_is_read_as_the_draft_that_it_is(
    site: Site, draft: Artifact, tmp_path: Path
) -> None:
    """Its library does not say how many layers the target has: with the target, all is told."""
    source = read_source(draft_folder(draft, site.placement.scratch), "ORG/target", None)
    FORMS["speculators"].write(source, tmp_path)
    alone = {row["what"]: row["value"] for row in describe(tmp_path)}
    assert "as speculators writes it" in alone["form"]
    assert "--target FOLDER" in alone["form"]
    assert not any(what.startswith("why") for what in alone)
    whole = {row["what"]: row["value"] for row in describe(tmp_path, site.root / "target")}
    assert whole["target"] == "6 layers, captured [-1, 1, 3]"
    found = gather(*named_draft(str(tmp_path), site.root / "target", None)).check(TEXT)
    assert found.passed, found.rows()
    assert [each.name for each in found.comparisons] == ["stepwise states", "decoding form"]


def test_a_name_that_is_no_folder_is_said_to_be_none() -> None:
    with pytest.raises(CheckpointError, match=r"/no/such: no such folder; give a folder, or a hub id"):
        gather(*named_draft("/no/such", None, None))

"""A stored sample whose bytes changed ends the run, or is left out of it: never trained on."""

import random
from pathlib import Path

import pytest

from deepspec.errors import CorruptArtifactError
from deepspec.target_cache.cache import TargetCache
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site, make_site

EVERY_SAMPLE_ALONE = SMALL.but(global_batch=1, steps=20, validation_samples=0, bigram_samples=0)


@pytest.fixture(params=[0, 1])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Return a site with one byte of one stored sample turned, another one for each seed."""
    site = make_site(tmp_path)
    index = TargetCache(site.cache, tmp_path).index
    number = random.Random(request.param).choice(index.numbers("train").tolist())
    path = Path(site.store.root, site.cache.prefix, site.cache.entry(index.part_of(number)).key)
    data = bytearray(path.read_bytes())
    data[index.row(number)["offset"]] ^= 1
    path.write_bytes(data)
    return site


def test_training_stops_or_leaves_the_sample_out_as_asked(damaged: Site) -> None:
    with pytest.raises(CorruptArtifactError, match=r"sample s\d+: .*does not match its checksum.*verify --repair"):
        damaged.train(EVERY_SAMPLE_ALONE, "stops")
    report = Heard()
    _, counts = damaged.train(EVERY_SAMPLE_ALONE.but(on_corrupt="quarantine"), "goes-on", report)
    assert (counts["steps"], counts["quarantined"], counts["skipped_steps"]) == (20, 1, 0)
    assert [line for line in report.lines if line.startswith("left out: shard-00000-part-00000")]

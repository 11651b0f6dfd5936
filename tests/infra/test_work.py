"""A stage in a child process: events become a report, a reference or an error of the tree."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from deepspec import errors
from deepspec.artifacts import ArtifactRef
from deepspec.cache.spec import CacheSpec
from deepspec.errors import BudgetError, ChildError, EngineError, SourceError, StoreError
from deepspec.placement import Endpoint, Placement
from deepspec.plan.plan import Limits
from deepspec.prepare.resolve import find_sources
from deepspec.prepare.spec import PrepareSpec
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import TargetId
from deepspec.stages import STAGES
from deepspec.store import Store
from infra.caps import caps_of
from infra.children import stage as work
from infra.children.child import Job, with_keys
from infra.children.events import Events
from infra.children.stage import run_job, run_stage
from infra.engines.managed import ManagedEngines
from infra.listeners import Listeners
from infra.processes.guard import EVENT
from infra.processes.launch import run_guarded
from infra.site import Site
from tests.given.heard import Heard
from tests.given.some import some


def site_of(tmp_path: Path, locations: dict[str, str]) -> Site:
    placement = Placement(scratch=tmp_path / "scratch", locations=locations)
    return Site(root=str(tmp_path / "store"), placement=placement)


def prompts(tmp_path: Path, *lines: str) -> tuple[PrepareSpec, Site]:
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found = find_sources([str(tmp_path / "rows.jsonl")])
    return PrepareSpec(sources=found.sources), site_of(tmp_path, dict(found.locations))


def test_a_stage_is_made_once_and_then_found(tmp_path: Path) -> None:
    spec, site = prompts(tmp_path, json.dumps({"prompt": "What is two plus two?"}))
    heard = Heard()
    ref = run_stage(site.work(STAGES["prepare"], spec, {}, heard), site)
    assert heard.steps
    assert run_stage(site.work(STAGES["prepare"], spec, {}, Heard()), site) == ref
    assert len(heard.texts) == 1


@pytest.mark.parametrize(
    ("scratch", "who"),
    [
        ("scratch", "another run of this data folder"),
        ("other", f"another run of this store, on {socket.gethostname()},"),
    ],
)
def test_of_two_runs_the_second_waits_and_finds_what_the_first_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: str, who: str
) -> None:
    """Of one data folder, or of two, as two machines have, with one store."""
    spec, site = prompts(tmp_path, json.dumps({"prompt": "What is two plus two?"}))
    waiting, jobs = Event(), []
    monkeypatch.setattr("infra.children.lease.LOOK_SECONDS", 0.05)

    class Second(Heard):
        def log(self, message: str) -> None:
            super().log(message)
            waiting.set()

    def first_job(job: Job, *rest: Any, **options: Any) -> Events:
        jobs.append(job)
        later.start()
        assert waiting.wait(60), "the second did not wait"
        return run_job(job, *rest, **options)

    def run(heard: Heard, folder: str) -> None:
        placement = site.placement.model_copy(update={"scratch": tmp_path / folder})
        own = site.model_copy(update={"placement": placement})
        refs.append(run_stage(own.work(STAGES["prepare"], spec, {}, heard), own))

    refs: list[ArtifactRef] = []
    second = Second()
    later = Thread(target=run, args=(second, scratch), daemon=True)
    monkeypatch.setattr(work, "run_job", first_job)
    run(Heard(), "scratch")
    later.join(60)
    assert second.lines == [f"{who} makes the same; waiting for its end"]
    assert len(refs) == 2
    assert refs[0] == refs[1]
    assert len(jobs) == 1, "made once"
    assert not any("claims" in key for key in Store(site.root).list("prompts"))


def test_runs_that_divide_a_cache_by_its_shards_do_not_wait_for_each_other(tmp_path: Path) -> None:
    site = site_of(tmp_path, {})
    other = site.model_copy(update={"placement": Placement(scratch=tmp_path / "other")})
    spec = CacheSpec(target=TargetId(config="c", weights="w", tokenizer="t", template="p"))
    inputs = {"answers": ArtifactRef(kind="answers", address="a", content="c", uri="u")}
    asked = [each.work(STAGES["cache"], spec, inputs, Heard()) for each in (site, other)]
    with work._turn(asked[0], site), work._turn(asked[1], other):
        pass


def test_machines_that_train_together_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, site = prompts(tmp_path, json.dumps({"prompt": "What is two plus two?"}))
    monkeypatch.setenv("DEEPSPEC_NODES", "2")
    monkeypatch.setenv("DEEPSPEC_FIRST_NODE", "127.0.0.1:29500")
    asked = site.work(STAGES["prepare"], spec, {}, Heard())
    with work._turn(asked, site), work._turn(asked, site):
        pass


def test_what_a_child_printed_is_kept_in_the_store_and_the_report_says_where(tmp_path: Path) -> None:
    spec, site = prompts(tmp_path, "not json")
    heard = Heard()
    with pytest.raises(SourceError):
        run_stage(site.work(STAGES["prepare"], spec, {}, heard), site)
    (log,) = Store(site.root).list("logs")
    assert "Traceback" in Store(site.root).read_bytes(log).decode()
    assert log.rpartition("/")[0] in str(heard.texts)


def test_a_store_that_cannot_take_the_log_hides_no_error_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, path: Path, key: str) -> None:
        raise StoreError(f"cannot write {key}: No space left on device")

    spec, site = prompts(tmp_path, "not json")
    monkeypatch.setattr(Store, "put_file", full)
    heard = Heard()
    with pytest.raises(SourceError, match="no row is left: 1 rows read"):
        run_stage(site.work(STAGES["prepare"], spec, {}, heard), site)
    assert "No space left on device" in heard.texts["log"]
    assert str(site.placement.scratch / "jobs") in heard.texts["log"]


def test_a_run_that_has_used_up_its_time_stops_before_a_stage_starts(tmp_path: Path) -> None:
    spec, site = prompts(tmp_path, json.dumps({"prompt": "What is two plus two?"}))
    late = site.model_copy(update={"caps": caps_of(Limits(hours=1), spent=timedelta(hours=1))})
    with pytest.raises(BudgetError, match=r"limits\.hours .*goes on from there"):
        run_stage(late.work(STAGES["prepare"], spec, {}, Heard()), late)
    early = site.model_copy(update={"caps": caps_of(Limits(hours=1), spent=timedelta(minutes=59))})
    assert run_stage(early.work(STAGES["prepare"], spec, {}, Heard()), early).kind == "prompts"


def test_money_pays_for_hours_of_the_machine() -> None:
    """Eight H100 at 2.50 USD are 20 USD an hour: 10 USD pay for half an hour."""
    until = caps_of(Limits(money=10, hardware="h100x8"), spent=timedelta(0)).until
    assert until is not None
    assert until - datetime.now(UTC) == pytest.approx(timedelta(minutes=30), abs=timedelta(seconds=5))


def test_what_a_run_holds_in_the_store_is_capped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("draft/one/a", b"x" * 1001)
    caps = caps_of(Limits(disk_gb=1e-6), spent=timedelta(0))
    caps.at("prompts/none").check(store)
    with pytest.raises(BudgetError, match=r"limits\.disk_gb"):
        caps.at("draft/one").check(store)


def test_the_childs_error_is_raised_with_its_class_and_message(tmp_path: Path) -> None:
    spec, site = prompts(tmp_path, "not json")
    spec = spec.but(bad_rows="stop")
    with pytest.raises(SourceError, match=r"rows\.jsonl:1: "):
        run_stage(site.work(STAGES["prepare"], spec.but(bad_rows="stop"), {}, Heard()), site)
    assert not [key for key in Store(site.root).list("prompts") if key.endswith("manifest.json")]


def test_a_child_that_dies_without_a_word_is_a_child_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, site = prompts(tmp_path, json.dumps({"prompt": "Hello there, how are you?"}))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildError, match="exit code 1"):
        run_stage(site.work(STAGES["prepare"], spec, {}, Heard()), site)


@pytest.mark.parametrize(
    ("engines", "started"),
    [(ManagedEngines(kind="vllm", gpus=("0", "1")), "vllm"), (ManagedEngines(), "xllamacpp")],
)
def test_our_own_engines_are_those_that_the_site_names(tmp_path: Path, engines: ManagedEngines, started: str) -> None:
    """The target is there as neither file nor folder, so the engine that would be started says so."""
    target = TargetId(config="c", weights="w", tokenizer="t", template="p")
    site = site_of(tmp_path, {}).model_copy(update={"engines": engines})
    prompts = ArtifactRef(kind="prompts", address="0" * 32, content="1", uri="here")
    with pytest.raises(EngineError, match=f"engine {started} serves a"):
        run_stage(site.work(STAGES["regenerate"], RegenerateSpec(target=target), {"prompts": prompts}, Heard()), site)


def test_a_key_goes_to_the_child_in_its_environment_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(
        work, "run_guarded", lambda command, **more: told.update(more, job=Path(command[-1]).read_text())
    )
    endpoint = Endpoint(url="http://127.0.0.1:1/v1", model="m", api_key_block="our-engines")
    placement = Placement(scratch=tmp_path, endpoints=(endpoint,))
    job = Job(stage="regenerate", spec={}, inputs={}, root=str(tmp_path), placement=placement)
    assert run_job(job, tmp_path / "job", Heard(), {"DEEPSPEC_KEY_OUR_ENGINES": "sk-4711"}).ref is None
    assert told["env"]["DEEPSPEC_KEY_OUR_ENGINES"] == "sk-4711"
    assert "sk-4711" not in told["job"]
    monkeypatch.setenv("DEEPSPEC_KEY_OUR_ENGINES", "sk-4711")
    (asked,) = with_keys(placement).endpoints
    assert some(asked.api_key).get_secret_value() == "sk-4711"


def test_lines_that_are_no_events_are_only_log() -> None:
    events = Events(Heard())
    events.line('{"event": "result"}')
    events.line(f'{EVENT}{{"event": "error", "type": "EngineError", "message": "gone"}}')
    assert events.ref is None
    assert isinstance(events.error, errors.EngineError)
    assert str(events.error) == "gone"


def test_how_long_it_has_to_save_is_told() -> None:
    """20 s, as everything has, and what it asks for."""
    heard = Heard()
    Events(heard).line(f'{EVENT}{{"event": "saving", "seconds": 210.0}}')
    assert heard.seconds == 210
    assert heard.lines[0].startswith("should it be asked to stop, it is given 230 s to save its work")


@pytest.mark.parametrize(
    "told",
    [
        '{"event": "progress", "done": 1, "to',
        '{"event": "progress", "done": "1", "total": 2, "unit": "rows", "note": ""}',
        '{"event": "progress", "done": 1}',
        '{"event": "figure", "key": "curve", "png": "no base64"}',
        '{"event": "result", "ref": {"kind": "draft"}}',
        '{"event": "unheard of"}',
        '{"no": "event"}',
        "[1, 2]",
        "17",
        "",
        "a line of somebody else's" + 300 * "!",
    ],
)
def test_what_looks_like_an_event_and_is_none_is_a_line_of_the_log(told: str) -> None:
    heard = Heard()
    events = Events(heard)
    events.line(f"{EVENT}{told}")
    assert heard == Heard(lines=[f"not an event: {told[:200]}{'…' if len(told) > 200 else ''}"])
    assert (events.ref, events.error, events.shards) == (None, None, None)


def test_a_rank_that_was_asked_to_stop_does_not_hide_the_error_of_the_one_that_failed() -> None:
    def told(*names: str) -> str:
        events = Events(Heard())
        for name in names:
            events.line(f'{EVENT}{{"event": "error", "type": "{name}", "message": "of {name}"}}')
        return str(events.error)

    assert told("CancelledError", "TrainingError") == "of TrainingError"
    assert told("TrainingError", "CancelledError") == "of TrainingError"
    assert told("CancelledError") == "of CancelledError"


NOISE = "import os; os.write(2, b'!'); [os.write(1, b'tick tock ') for _ in range(300_000)]"
NOISY = f"""
import os, subprocess, sys, threading
from infra.children.child import emit

noise = subprocess.Popen([sys.executable, "-c", {NOISE!r}], stderr=subprocess.PIPE)
noise.stderr.read(1)
def speak(name):
    for number in range(50):
        emit(event="log", message=f"{{name}} {{number}} " + "." * 20_000)
        os.write(1, b"half a line")
threads = [threading.Thread(target=speak, args=(name,)) for name in "ab"]
for thread in threads: thread.start()
for thread in threads: thread.join()
noise.wait()
"""


def test_what_others_print_tears_no_event(tmp_path: Path) -> None:
    """Another process writes to the same stdout without ever ending a line, and two threads speak at once."""
    heard = Heard()
    command = [sys.executable, "-c", NOISY]
    run_guarded(command, log_path=tmp_path / "log", on_line=Events(heard).line)
    told = [line.split(" ")[:2] for line in heard.lines]
    assert sorted(told) == sorted([name, str(number)] for name in "ab" for number in range(50))
    assert {len(line.rpartition(" ")[2]) for line in heard.lines} == {20_000}
    log = (tmp_path / "log").read_bytes()
    assert log.count(b"half a line") == 100
    assert all(line.startswith(b'{"event"') for line in log.split(EVENT.encode())[1:])


def test_events_go_to_stdout_where_no_guard_offers_a_pipe(tmp_path: Path) -> None:
    speak = "from infra.children.child import emit; emit(event='log', message='hello')"
    env = {**os.environ, "DEEPSPEC_EVENTS": str(tmp_path / "gone")}
    for environment in ({**os.environ}, env, {**env, "DEEPSPEC_EVENTS": str(tmp_path / "file")}):
        (tmp_path / "file").write_text("no pipe")
        done = subprocess.run(
            [sys.executable, "-c", speak], env=environment, capture_output=True, text=True, check=True
        )
        heard = Heard()
        Events(heard).line(done.stdout.rstrip("\n"))
        assert heard.lines == ["hello"]
    assert (tmp_path / "file").read_text() == "no pipe"


def test_listeners_pass_everything_on() -> None:
    one, other = Heard(), Heard()
    both = Listeners([one, other])
    both.log("line")
    both.progress(1, 2, "rows")
    both.table("t", [{"a": 1}])
    both.figure("f", b"png")
    both.markdown("m", "text")
    assert one == other == Heard(["line"], {"t": [{"a": 1}]}, {"f": b"png"}, {"m": "text"}, [(1, 2)])

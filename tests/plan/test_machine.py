"""Devices are looked at before anything is asked: typos, cards that are not there, builds that cannot use them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deepspec.benchmark.spec import hardware_fingerprint
from deepspec.errors import ChildError, SpecError
from deepspec.placement import Placement
from deepspec.plan.machine import Card, Machine, check_device, settled
from flows.choices import choose_site
from infra.children import devices
from infra.known import hardware_of
from infra.known import settled as settled_site
from infra.site import FanOut, Site

CARD = Card(name="NVIDIA H100", memory=85_000_000_000)
CPU = Machine(torch="2.13.0+cpu", built_for=None, driver=None, failure="Torch not compiled with CUDA enabled")


def machine(cards: int = 2, **changes: object) -> Machine:
    told = {"torch": "2.13.0+cu128", "built_for": "12.8", "driver": "570.86", "cards": (CARD,) * cards}
    return Machine.model_validate({**told, **changes})


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12", "auto", "spread"])
def test_devices_that_there_may_be(device: str) -> None:
    assert choose_site(device=device).placement.device == device


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda0", "mps", "", "cpu:0", "cuda:0 "]
)
def test_a_mistyped_device_is_one_line(device: str) -> None:
    with pytest.raises(SpecError, match=r"^device: unknown device .*; known: cpu, cuda, cuda:N, auto, spread$"):
        choose_site(device=device)


def test_what_is_there_is_told() -> None:
    told = "NVIDIA H100 (85 GB), NVIDIA H100 (85 GB); driver 570.86; torch 2.13.0+cu128"
    for device in ("cuda", "cuda:1", "spread"):
        assert check_device(Placement(device=device), machine()) == told
    assert check_device(Placement(device="cuda", processes=2), machine()) == told


@pytest.mark.parametrize(("placed", "message"), [
    ({"device": "cuda:2"}, "--device cuda:2: this machine has 2 cards, cuda:0 to cuda:1"),
    ({"device": "cuda", "processes": 3}, "--processes is 3 and this machine has 2 cards"),
    ({"device": "cuda:1", "processes": 2}, "--device cuda:1 is for one process and --processes is 2"),
    ({"device": "spread", "processes": 2}, "--device spread is for one process"),
])  # fmt: skip
def test_more_than_there_is_is_refused(placed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_device(Placement(**placed), machine())


OLD = "The NVIDIA driver on your system is too old (found version 11040)"
NONE = {
    "a build for CPUs": (CPU, r"torch 2\.13\.0\+cpu is a build for CPUs; install one for CUDA"),
    "beside a card": (CPU.model_copy(update={"driver": "570.86"}), "though this machine has the NVIDIA driver 570.86"),
    "no driver": (machine(0, driver=None, failure="Found no NVIDIA driver"), "this machine has no NVIDIA driver; give"),
    "an old driver": (
        machine(0, driver="470.1", failure=OLD),
        r"cannot use the driver 470\.1: The NVIDIA driver on your system is too old .*older than CUDA 12\.8 is the",
    ),
    "hidden cards": (
        machine(0, visible="", failure="No CUDA GPUs are available"), "CUDA_VISIBLE_DEVICES='' leaves none to torch"
    ),
    "an old driver and chosen cards": (machine(0, visible="0", failure=OLD), "is too old"),
}  # fmt: skip


@pytest.mark.parametrize("case", NONE)
def test_why_there_is_no_card_is_told(case: str) -> None:
    found, message = NONE[case]
    with pytest.raises(SpecError, match=f"--device cuda: torch sees no card here: .*{message}"):
        check_device(Placement(device="cuda"), found)
    placement, told = settled(Placement(device="auto"), found)
    assert placement.device == "cpu"
    assert told.startswith("--device auto is cpu: ")


def test_auto_is_cuda_where_there_is_a_card() -> None:
    placement, told = settled(Placement(device="auto", threads=2), machine(1))
    assert (placement.device, placement.threads) == ("cuda", 2)
    assert told == "--device auto is cuda: NVIDIA H100 (85 GB); driver 570.86; torch 2.13.0+cu128"


def test_only_auto_is_looked_up_and_only_where_stages_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine", lambda: machine(1))
    site = Site(placement=Placement(device="auto"))
    assert settled_site(site)[0].placement.device == "cuda"
    away = site.model_copy(update={"fan_out": FanOut(runner="ray")})
    assert settled_site(away) == (away, "")
    monkeypatch.setattr(devices, "machine", lambda: pytest.fail("cpu needs no look"))
    named = Site(placement=Placement(device="cpu"))
    assert settled_site(named) == (named, "")


def test_a_draft_is_never_spread() -> None:
    devices_of = {device: Placement(device=device).draft_device for device in ("cpu", "cuda", "cuda:1", "spread")}
    assert devices_of == {"cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1", "spread": "cuda"}


def test_the_child_says_what_torch_finds_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.machine.cache_clear()
    found = devices.machine()
    monkeypatch.setattr(subprocess, "run", lambda *words, **told: pytest.fail("asked again"))
    assert devices.machine() is found
    assert found.torch.startswith("2.")


def test_a_child_that_cannot_load_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.machine.cache_clear()
    done = subprocess.CompletedProcess([], 1, "", "ImportError: libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(subprocess, "run", lambda *words, **told: done)
    with pytest.raises(
        ChildError, match=r"infra\.children\.devices ended with exit code 1; its last lines:\nImportError: libcudart"
    ):
        devices.machine()
    devices.machine.cache_clear()


def test_the_drivers_version_is_read_where_the_kernel_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(devices, "_asked_driver", lambda: "asked")
    assert devices.driver_version() == "asked"
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\nGCC version: 12.2"
    )
    assert devices.driver_version() == "570.86.15"


@pytest.mark.parametrize(
    ("device", "runner", "told"),
    [
        ("cuda:1", "threads", ", 2 threads, cuda:1: NVIDIA H100"),
        ("cuda", "ray", ", 2 threads, cuda: a card that was not looked at"),
        ("cpu", "threads", ", 2 threads"),
    ],
)
def test_times_are_kept_by_the_cards_that_they_were_measured_on(
    device: str, runner: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "machine", machine if device != "cpu" else lambda: pytest.fail("looked for cards"))
    site = choose_site(device=device, threads=2).model_copy(update={"fan_out": FanOut(runner=runner)})
    assert hardware_of(site) == hardware_fingerprint() + told

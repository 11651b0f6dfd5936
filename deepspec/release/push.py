"""Bring a release to where its users are: a repository of the Hugging Face hub, or another store."""

import secrets
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from deepspec.artifacts import MANIFEST, Artifact, open_artifact
from deepspec.disk import full_disk_named
from deepspec.errors import SpecError, StoreError
from deepspec.formats.exports import read_index, write_form
from deepspec.store import Store

HUB = "hf:"
"""A destination that begins so is a repository of the hub."""

ROOT_FORM = "deepspec"
"""Form whose files lie at the root of a repository, where vLLM and our own reader look; the others have folders."""


def push(release: Artifact, destination: str, scratch: Path, *, private: bool = False) -> str:
    """Publish a release and return where it lies.

    Args:
        release: the artifact.
        destination: `hf:ORG/NAME`, or the root of a store (a folder, `s3://bucket/prefix`).
        scratch: for the folder that is uploaded.
        private: whether a repository that is made now is private.

    Raises:
        SpecError: it is no release.
        StoreError: the hub or the store refuses, or the scratch disk is full.
    """
    if release.manifest.kind != "release":
        raise SpecError(f"{release.prefix} is of kind {release.manifest.kind}; wanted a release, see: deepspec status")
    with full_disk_named(scratch):
        if not destination.startswith(HUB):
            return _copy_release(release, Store(destination), scratch)
        folder = scratch / "pushed" / release.manifest.address
        shutil.rmtree(folder, ignore_errors=True)
        lay_out(release, folder)
    return _upload(folder, destination.removeprefix(HUB), private, release.manifest.address)


def lay_out(release: Artifact, folder: Path) -> None:
    """Write a release as a repository: card, reports and the public form at the root, the other forms below."""
    folder.mkdir(parents=True)
    index = read_index(release)
    of_forms = {stored for form in index.forms.values() for stored in form.files.values()}
    for name in (each for each in release.names() if each not in of_forms or "__" not in each):
        shutil.copyfile(release.path(name), folder / name)
    for name, form in index.forms.items():
        if form.refused is None:
            write_form(release, name, folder if name == ROOT_FORM else folder / name)


def _copy_release(release: Artifact, store: Store, scratch: Path) -> str:
    """Copy a release into another store, with the scores and the draft that its re-evaluation reads.

    Returns:
        where the release lies.

    Raises:
        NotPublishedError: its scores or its draft are gone.
    """
    for needed in (release.manifest.inputs[name] for name in ("draft", "scores")):
        _copy(open_artifact(release.store, needed, scratch), store, scratch)
    return _copy(release, store, scratch)


def _copy(artifact: Artifact, store: Store, scratch: Path) -> str:
    """Copy an artifact that is not there yet, its commit mark last; return where it lies."""
    mark = f"{artifact.prefix}/{MANIFEST}"
    if not store.exists(mark):
        for name, entry in artifact.manifest.files.items():
            moved = scratch / "pushed" / f"{secrets.token_hex(6)}-{name}"  # the store takes the file away
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path(name), moved)
            store.put_file(moved, f"{artifact.prefix}/{entry.key}")
            moved.unlink(missing_ok=True)
        store.write_bytes(mark, artifact.store.read_bytes(mark))
    return store.uri(artifact.prefix)


def _upload(folder: Path, repository: str, private: bool, address: str) -> str:
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Release {address[:12]}")
    except HFValidationError as error:
        raise SpecError(f"{repository!r} is no name of a repository; wanted hf:ORG/NAME") from error
    except (HTTPError, OSError) as error:
        advice = "check the network, and log in with: hf auth login"
        raise StoreError(f"the hub refuses {repository}: {error}; {advice}") from error
    return str(url)

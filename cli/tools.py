"""Commands about one thing: inspect a checkpoint, lay an engine's folder out, list the fields of a plan."""

from pathlib import Path
from typing import Annotated

import typer

from cli.check import AsJson
from cli.published import given_folder
from deepspec.artifacts import open_artifact
from deepspec.catalog import find
from deepspec.checkpoint.files import checkpoint_folder, read_config
from deepspec.formats.exports import read_index, write_form
from deepspec.plan.plan import Plan
from deepspec.specs import Spec
from deepspec.store import Store
from infra.settings import named_root, scratch_dir
from infra.shipped import lay_out
from infra.terminal import Piece, Styled, say, show_json, show_table

app = typer.Typer()

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def inspect(
    checkpoint: str,
    target: Annotated[
        Path | None,
        typer.Option(help="Folder of its target: embedding and head are compared."),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a draft CHECKPOINT is: a folder, or a hub id, of which only the config is fetched without --target."""
    del debug
    folder = checkpoint_folder(checkpoint, weights=target is not None)
    read_config(folder)
    given_folder(target)
    from deepspec.checkpoint.draft import describe  # loads torch: not before what is named was found
    from deepspec.checkpoint.ends import distances_told, ends_apart, warning

    rows: list[dict[str, Piece]] = [{**row} for row in describe(folder, target)]
    if target is not None:
        apart = ends_apart(folder, target)
        loud = warning(apart)
        shown = distances_told(apart) if loud is None else Styled(loud, "bold red")
        rows.append({"what": "distance from the target's own (relative)", "value": shown})
    if as_json:
        told_rows = ((row["what"], row["value"]) for row in rows)
        show_json({what: value.text if isinstance(value, Styled) else value for what, value in told_rows})
        return
    show_table(checkpoint, rows)


@app.command()
def unpack(
    artifact: Annotated[str, typer.Argument(help="Exports or a release: a ref, kind/address, or a start of it.")],
    form: Annotated[str, typer.Argument(help="vllm, sglang, llama.cpp, huggingface, speculators or deepspec.")],
    folder: Annotated[Path, typer.Argument(help="Where to lay the engine's folder out.")],
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    debug: Debug = False,
) -> None:
    """Lay one engine's folder of a draft out."""
    del debug
    store = Store(named_root(root))
    exports = open_artifact(store, find(store, artifact), scratch_dir())
    files = write_form(exports, form, folder)
    say(f"{folder}: {', '.join(path.name for path in files)}")
    for option in read_index(exports).forms[form].options:
        say(f"serve it with {option}: the engine reads that from no file")


@app.command("files")
def lay_files_out(
    folder: Annotated[Path, typer.Argument(help="Where to lay them out, as in a checkout.")],
    debug: Debug = False,
) -> None:
    """Copy the files for servers and clusters into a FOLDER: deployments, compose, Kubernetes, Slurm, S3 policy."""
    del debug
    for path in lay_out(folder):
        say(str(path))


@app.command()
def push(
    release: Annotated[str, typer.Argument(help="A release: a ref, kind/address, or a start of it.")],
    destination: Annotated[str, typer.Argument(help="hf:ORG/NAME, or a store: a folder or s3://bucket/prefix.")],
    private: Annotated[bool, typer.Option("--private", help="A repository made now is private.")] = False,
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    debug: Debug = False,
) -> None:
    """Publish a release on the Hugging Face hub, or copy it into another store."""
    del debug
    from deepspec.release.push import push as pushed  # loads the hub's client

    store = Store(named_root(root))
    where = pushed(
        open_artifact(store, find(store, release), scratch_dir()), destination, scratch_dir(), private=private
    )
    say(f"{release} → {where}")


@app.command()
def fields(section: Annotated[str, typer.Argument(help="A section of the plan, train say.")] = "") -> None:
    """List what --set can change: every field of a plan, its default, and what it means."""
    rows = [row for row in field_rows(Plan) if row["field"].startswith(section)]
    show_table("--set FIELD=VALUE", rows)


def field_rows(model: type[Spec], prefix: str = "") -> list[dict[str, str]]:
    """Return field, default and meaning of everything in a spec, nested ones in full."""
    rows: list[dict[str, str]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            rows += field_rows(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else str(field.default)
            meaning = " ".join((field.description or "").split())
            rows.append({"field": f"{prefix}{name}", "default": default, "meaning": meaning})
    return rows

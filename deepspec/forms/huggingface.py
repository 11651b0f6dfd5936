"""The Hugging Face form: the public DeepSpec form with the few lines by which transformers loads it as a model."""

import json
from pathlib import Path

from safetensors.torch import load_file

from deepspec.checkpoint.draft import CONFIG, WEIGHTS
from deepspec.forms.form import Form, FormSource, Json, Tensors, safetensors_form, write_config

MODULE = "modeling_deepspec"

_CODE = '''"""Loads this draft through transformers; needs `pip install deepspec`.

    AutoModel.from_pretrained(FOLDER_OR_ID, trust_remote_code=True)
"""

from pathlib import Path

import torch
from deepspec.checkpoint.draft import load_draft
from huggingface_hub import snapshot_download


class DeepSpecDraft:
    """Stands for the draft classes of deepspec."""

    @classmethod
    def from_pretrained(cls, name, *args, revision=None, dtype=torch.float32, **kwargs):
        """Return the draft, a torch module in eval mode."""
        folder = name if Path(name).is_dir() else snapshot_download(str(name), revision=revision)
        return load_draft(Path(folder), dtype)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """Do nothing: the folder already names its class."""
'''


def _expresses_all(source: FormSource) -> str | None:
    del source
    return None


def _as_it_is(source: FormSource) -> tuple[Json, Tensors, list[str]]:
    return dict(source.config), dict(source.tensors), []


def _read_as_it_is(config: Json, tensors: Tensors) -> tuple[Json, Tensors]:
    return config, tensors


DEEPSPEC: Form = safetensors_form(_expresses_all, _as_it_is, _read_as_it_is)
"""The public DeepSpec form."""


def _write(source: FormSource, folder: Path) -> list[str]:
    notes = DEEPSPEC.write(source, folder)
    write_config({**source.config, "auto_map": {"AutoModel": f"{MODULE}.DeepSpecDraft"}}, folder)
    (folder / f"{MODULE}.py").write_text(_CODE, encoding="utf-8")
    return [*notes, "loads with AutoModel.from_pretrained(…, trust_remote_code=True) where deepspec is installed"]


def _read(folder: Path) -> tuple[Json, Tensors]:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key != "auto_map"}, load_file(folder / WEIGHTS)


HUGGINGFACE: Form = Form(refuse=_expresses_all, write=_write, read=_read)

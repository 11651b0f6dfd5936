"""What changes the exports: the forms asked for, and the name under which engines know the target."""

from deepspec.forms.names import FormName
from deepspec.specs import Spec


class ExportSpec(Spec):
    """Write the draft in the forms of engines; a form that cannot express it is refused by name and counted."""

    forms: tuple[FormName, ...] = ("deepspec", "vllm", "sglang", "huggingface", "speculators", "llama.cpp")
    """Which forms are written."""
    target: str = ""
    """Hub id or name of the target as the engines will load it; empty: the one in the draft's config."""
    gguf: str | None = None
    """GGUF file from which llama.cpp serves the target: its form takes the tokenizer from there. None: the one in the
    target's folder. In an artifact's spec it is the file's hash."""
    gate: bool = True
    """Whether one text is run through target, cache, draft and every form; needs room for the target in fp32."""

"""Accepted length by context, to 32K and beyond, of drafts with full attention and with a window, trained alike.

    python -m tests.benchmarks.bench_contexts FOLDER [cpu | cuda] [LENGTH ...]
    python -m tests.benchmarks.bench_contexts FOLDER cpu small 300    # a minute: shows that it runs

No model from elsewhere: a target of 2 million weights is taught the text of this project's own pages, byte by byte, and
answers prompts cut from them. Its layers see a window of 128 tokens, so what it answers is the same behind whatever
material fills the prompt: what changes with the context is the draft alone. Every stage is the library's own; what is
in FOLDER already is taken as it is.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.given.apart import ROOT
from tests.given.heard import Heard
from tests.given.published.chain import run_chain
from tests.given.targets import tiny

CONTEXTS = [512, 2048, 8192, 16384, 32000]
WINDOW = 128
PIECE = 320
"""Bytes of text of a row: a prompt, and what follows it."""
PROMPT = 64
ANSWER = 192
AT_ONCE = 60
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 32,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 40960, "eos_token_id": tiny.IM_END,
    "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": WINDOW,
    "layer_types": ["sliding_attention"] * 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
DRAFTS: dict[str, dict[str, Any]] = {
    "DSpark, full": {"algorithm": "dspark", "num_layers": 2, "block_size": 5, "markov_rank": 16},
    "DSpark, window": {"algorithm": "dspark", "num_layers": 2, "block_size": 5, "markov_rank": 16, "window": WINDOW},
    "Eagle3, full": {"algorithm": "eagle3"},
    "Eagle3, window": {"algorithm": "eagle3", "window": WINDOW},
}

OF_KIND: dict[str, dict[str, Any]] = {
    "dspark": {"objective": {"num_anchors": 48}, "mask_token_id": tiny.MASK},
    "eagle3": {"objective": {"ttt_length": 4}},
}
"""Fewer slots and steps than by default, for a processor."""


class Text:
    """The pages of this project, cut into pieces: what is held out, and the rest."""

    def __init__(self, small: bool) -> None:
        """Read the pages."""
        pages = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
        text = "".join(page.read_text(encoding="ascii", errors="ignore") for page in pages)
        pieces = [text[start : start + PIECE] for start in range(0, len(text) - PIECE, PIECE)]
        pieces = [piece for piece in pieces if "<|" not in piece]  # one token a byte, so all are of one length
        random.Random(0).shuffle(pieces)
        self.held_out, self.taught = pieces[:40], pieces[40 : 200 if small else None]
        self.asked = self.taught[: 60 if small else 600]
        self.steps, self.train_steps = (20, 5) if small else (1500, 400)


def prompt_of(piece: str) -> str:
    """Return the question that a piece of text answers."""
    return f"go on: {piece[:PROMPT]}"


def teach(text: Text, device: str) -> Qwen3ForCausalLM:
    """Return a target that goes on as the pages do."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES)).to(device)
    tokenizer, draw = tiny.tokenizer(), random.Random(0)
    rows = [
        f"<|im_start|>user\n{prompt_of(piece)}<|im_end|>\n<|im_start|>assistant\n{piece[PROMPT:]}<|im_end|>\n"
        for piece in text.taught
    ]
    ids = torch.tensor([tokenizer(row, add_special_tokens=False).input_ids for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=text.steps)
    for step in range(text.steps):
        chosen = ids[[draw.randrange(len(ids)) for _ in range(12)]].to(device)
        loss = model(input_ids=chosen, labels=chosen).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == text.steps - 1:
            print(f"  target: step {step}, loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.inference_mode()
def answers(model: Qwen3ForCausalLM, asked: list[str]) -> Iterator[tuple[str, str]]:
    """Yield prompts, and what the target says to them at temperature 0."""
    tokenizer = tiny.tokenizer()
    for start in range(0, len(asked), AT_ONCE):
        talks = [[{"role": "user", "content": prompt_of(piece)}] for piece in asked[start : start + AT_ONCE]]
        rows = [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]
        ids = torch.tensor(rows, device=model.device)  # every prompt has as many bytes
        found = model.generate(ids, max_new_tokens=ANSWER, do_sample=False, pad_token_id=tiny.END_OF_TEXT)
        for talk, each in zip(talks, found[:, ids.shape[1] :].tolist(), strict=True):
            yield talk[0]["content"], tokenizer.decode(each, skip_special_tokens=True)


def write_inputs(folder: Path, device: str, text: Text) -> None:
    """Write target, answers and questions."""
    model = teach(text, device)
    model.save_pretrained(folder / "target")
    tiny.tokenizer().save_pretrained(folder / "target")
    (folder / "target" / "generation_config.json").write_text(json.dumps({"eos_token_id": [tiny.IM_END]}))
    (folder / "benchmarks").mkdir(exist_ok=True)
    lines = "".join(json.dumps({"turns": [prompt_of(piece)]}) + "\n" for piece in text.held_out)
    (folder / "benchmarks" / "pages.jsonl").write_text(lines)
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in answers(model, text.asked)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def parts(folder: Path, draft: dict[str, Any], contexts: list[int], steps: int) -> dict[str, Any]:
    """Return the plan of one draft."""
    return {
        "target": {"name": "pages", "model": str(folder / "target")},
        "dataset": {"answers": str(folder / "answers.jsonl"), "benchmarks_dir": str(folder / "benchmarks")},
        "prepare": {"near_duplicates": None},
        "cache": {"layers": [0, 1, 2], "codec": "bf16", "dtype": "float32"},
        "train": {
            "draft": draft, "steps": steps, "global_batch": 4, "precision": "fp32", "learning_rate": 2e-3,
            "validation_samples": 8, **OF_KIND[draft["algorithm"]],
        },
        "evaluate": {
            "temperatures": [0.0], "max_new_tokens": 96, "calibration_samples": 0, "untrained_samples": 0,
            "lossless_samples": 1, "samples": 12, "contexts": contexts, "context_samples": 12, "dtype": "float32",
        },
    }  # fmt: skip


def measured(folder: Path, device: str, contexts: list[int], text: Text) -> dict[str, dict[str, Any]]:
    """Return draft -> what its evaluation tells by context."""
    found = {}
    for name, draft in DRAFTS.items():
        plan = partial(parts, draft=draft, contexts=contexts, steps=text.train_steps)
        made = run_chain(folder, device, Heard(), parts=plan, last="evaluate")
        found[name] = json.loads(made["evaluate"].read_bytes("scores.json"))
        print(f"  {name}: done", flush=True)
    return found


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: a row for each length, a column for each draft."""
    yield f"| tokens of the prompt | {' | '.join(found)} |"
    yield "|---" * (len(found) + 1) + "|"
    columns = [scores["contexts"] for scores in found.values()]
    for row in zip(*columns, strict=True):
        lengths = [each["acceptance"]["accepted_length"] for each in row]
        cells = [f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in lengths]
        yield f"| {row[0]['length']} ({row[0]['questions']} questions) | {' | '.join(cells)} |"


def main(folder: Path, device: str, words: list[str]) -> None:
    """Make what is not there, and print the table."""
    text = Text("small" in words)
    contexts = [int(word) for word in words if word != "small"] or CONTEXTS
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "answers.jsonl").exists():
        write_inputs(folder, device, text)
    start = time.perf_counter()
    found = measured(folder, device, contexts, text)
    print("\n".join(table(found)))
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    print(f"{device}, torch {torch.__version__}: {time.perf_counter() - start:.0f} s, peak {peak / 2**30:.1f} GiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2:] or ["cpu"])[0], sys.argv[3:])

"""What is right for each folder of a machine or a command with faults: folder -> ways to run it."""

import re
from collections.abc import Mapping, Sequence

from tests.soak.fault import AGREES, Fault, Told, done, ends, trained

PUBLISHED = tuple(
    rf"^│ {kind} +│ \w+ +│ published " for kind in ("prompts", "answers", "target_cache", "draft", "exports")
)

RAN = ("^│ release +│ (Completed|Cached) +│ ", r"^│ lossless at temperature 0 +│ yes, 1 samples ")

MACHINE: Mapping[str, Sequence[Fault]] = {
    "disk-full": (
        Fault(
            commands=(
                ends(
                    "prepare",
                    r"the plan needs about 12 MB in .*, which has 922 kB free; use cache\.codec=fp8 or fewer ",
                ),
                *trained(cache="^cache 60 rows read, 55 kept; 55 samples; ", train=AGREES),
                done("status", *PUBLISHED),
            ),
            needs=("mount",),
        ),
        Fault(
            commands=(
                done("prepare", "^prepare 60 rows read, 60 kept$"),
                done("regenerate", "^regenerate 60 prompts = 60 success "),
                ends(
                    "cache",
                    "cannot write .* No space left on device: .*; check that the root exists, is writable and has ",
                ),
                done("prepare", "^prepare: Cached, "),
                done("regenerate", "^regenerate: Cached, "),
                *trained(cache="^cache 60 rows read, 55 kept; 55 samples; ", train=AGREES)[2:],
                done("status", *PUBLISHED),
            ),
            also=("dataset.samples=1", "dataset.answer_tokens=1"),  # an estimate that is too low lets it begin
            needs=("mount",),
        ),
    ),
    "read-only": (
        Fault(
            commands=(
                done("prepare", "^prepare 30 rows read, 30 kept$"),
                ends("prepare", "cannot write .* Read-only file system: .*; check that the root exists, is writable "),
                done("status", r"^│ prompts +│ \w+ +│ published "),
                ends(
                    "prepare", "the data folder .* cannot be written: Read-only file system; set DEEPSPEC_DATA_DIR to "
                ),
            ),
            needs=("mount",),
        ),
    ),
    "two-runs-at-once": (
        Fault(
            commands=(
                *(done("", *ran) for ran in (RAN, (), RAN, ())),
                done("status", *PUBLISHED, r"^│ release +│ \w+ +│ published "),
            ),
            never=(r"^\[exit [^0]",),
        ),
    ),
    "odd-paths": (
        Fault(
            commands=(
                *trained(prepare="^prepare 40 rows read, 40 kept$", train=AGREES),
                done("status", *PUBLISHED),
            ),
        ),
    ),
}
"""Disks, folders and runs beside each other."""

MISTYPED: Mapping[str, str] = {
    "--target SmolLM2-135M": "^error: unknown target .* 'SmolLM2-135M'; known: .*smollm2-135m$",
    "--target smollm2": "^error: unknown target .* 'smollm2'; known: .*smollm2-135m$",
    r"--target HuggingFaceTB\SmolLM2": "^error: unknown target ",
    "--algorithm DSpark": "'DSpark' is not one of 'dspark', 'dflash', 'eagle3'",
    "--algorithm eagle-3": "'eagle-3' is not one of 'dspark', 'dflash', 'eagle3'",
    "--set train.steps=1e3": r"^error: train\.steps: Input should be a valid integer",
    "--set train.steps=0.5": r"^error: train\.steps: Input should be a valid integer",
    "--set train.steps 400": r"Got unexpected extra argument\(s\) \(400\)",
    "--set train.step=400": r"^error: train\.step: unknown; see the fields with: deepspec fields$",
    "--set Train.steps=400": "^error: Train: unknown; see the fields with: deepspec fields$",
    "--set train=5": "^error: train: Input should be ",
    "--set train.draft.markov_rank=none": r"^error: train\.draft\.markov_rank: Input should be a valid integer",
    "--set cache.layers=1,2": r"^error: cache\.layers: Input should be a valid tuple",
    "--set cache.layers=[1,99]": r"^error: cannot capture layers \[1, 99\] of a target with 6 layers; ",
    "--set cache.layers=[2,1]": r"^error: cannot capture layers \[2, 1\] of .*; wanted ascending ids ",
    "--set cache.codec=fp16": r"^error: cache\.codec: Input should be 'bf16', ",
    "--set evaluate.temperatures=0": r"^error: evaluate\.temperatures: Input should be a valid tuple",
    "--smoke 5": "'--smoke': Input should be greater than or equal to 8",
    "--device gpu": "^error: device: unknown device 'gpu'; known: cpu, cuda, ",
    "--threads 0": "'--threads': Input should be greater than or equal to 1",
    "--endpoint localhost:8000/v1 --model x": "^error: --endpoint: an endpoint's URL is not one; ",
    "--endpoint http://user:pw@localhost:8000/v1 --model x": "^error: --endpoint: .* holds a user or password; ",
    "--root s3:/bucket/x": "^error: store 's3:/bucket/x' begins like a URL and is none; write s3://bucket/x, ",
    "--root S3://bucket/x": "^error: store 'S3://bucket/x' begins like a URL and is none; write s3://bucket/x, ",
    "--prompts a.jsonl b.jsonl": r"Got unexpected extra argument\(s\) \(b\.jsonl\)",
    "--prompts a.json": r"^error: a\.json: no such file; check the path$",
    "--prompts https://127.0.0.1:9/none.jsonl": "^planned without what cannot be reached: https://127",
    "--size small": "^error: unknown size preset 'small'; known: ",
    "--dataset democratic": "^error: unknown dataset preset 'democratic'; known: ",
    "--draft nothere": "^error: nothing published in .* is called 'draft/nothere'; ",
    "--tracker tensorbord": "^error: unknown tracker 'tensorbord'; known: .*tensorboard",
    "--prompt x.jsonl": "No such option: --prompt .*--prompts",
    "--engine vLLM": "^error: unknown engine 'vLLM'; known: .*vllm",
    "--set train.mask_token_id=999999": "^error: mask token 999999 is outside the embedding, which has ids 0 to 263$",
    "--set dataset.benchmarks=[gsm9k]": "^error: unknown benchmark 'gsm9k'; known: ",
    "--set limits.hours=-1": r"^error: limits\.hours: Input should be greater than 0$",
    "--prompts demo?limit=ten": "^error: source prompts: limit: Input should be a valid integer",
    "--prompts demo?limt=10": r"^error: demo\?limt=10: no such file, folder or dataset",
}
"""What `deepspec plan` says to options with a mistake in them."""

NOT_CALLED = "^error: nothing published in .* is called '{}'; see: deepspec status$"


def mistyped(option: str, answer: str) -> str:
    """Return the option and, in the lines up to the next one, the answer to it."""
    begin, text = ("", answer.removeprefix("^")) if answer.startswith("^") else (".*", answer)
    return rf"^--- {re.escape(option)}\n(?:(?!--- ).*\n)*?{begin}{text}"


COMMANDS: Mapping[str, Sequence[Fault]] = {
    "typing-mistakes": (
        Fault(
            commands=(
                Told(command="trian", code=2, says=(r"No such command 'trian'\. Did you mean 'train'\?",)),
                done("status", "^store "),
                done("runs", "^runs on "),
                ends("compare a b", NOT_CALLED.format("scores/a")),
                ends("gc", NOT_CALLED.format("nothing")),
                ends("push nothing", NOT_CALLED.format("nothing")),
                ends("ref x y", NOT_CALLED.format("y")),
            ),
            shown=tuple(mistyped(option, answer) for option, answer in MISTYPED.items()),
        ),
    ),
}
"""Commands with mistakes in them."""

USE: Mapping[str, Sequence[Fault]] = {**MACHINE, **COMMANDS}

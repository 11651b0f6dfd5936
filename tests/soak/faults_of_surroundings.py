"""What is right for each folder of a faulty target, engine, cache, machine or command: folder -> ways to run it."""

import re
from collections.abc import Mapping, Sequence

from tests.soak.fault import Fault, Told, built, done, ends

STAGES = ("prepare", "regenerate", "cache", "train", "export")
AGREES = "^train the cache agrees with its target: 2 samples computed again, off by "
LATER = r"is not published or stale; run first: deepspec "


def trained(**says: str) -> tuple[Told, ...]:
    """Return prepare to export, all of which do their work."""
    return tuple(done(stage, f"^{stage}: Completed, ", says.get(stage, "")) for stage in STAGES)


TARGETS: Mapping[str, Sequence[Fault]] = {
    "target-shard-missing": (
        Fault(
            commands=(
                ends("doctor", r"^│ target +│ failed +│ .*index\.json names 5 files, of which model-00005-of-00005\."),
                *(
                    ends("prepare", r"names 5 files, of which model-00005-of-00005\.safetensors is not there; fetch it")
                    for _ in range(2)
                ),
            ),
        ),
    ),
    "vocabulary-smaller-than-tokenizer": (
        Fault(
            commands=(
                ends(
                    "prepare",
                    r"the tokenizer knows 280 tokens, the embedding has 264 rows \(there is none for <\|extra_10\|>, ",
                    r"; take the tokenizer that belongs to the weights, or resize the embedding ",
                ),
            ),
        ),
    ),
    "half-precision-untied-shards": (
        Fault(commands=trained(cache="^cache 60 rows read, 55 kept; 55 samples; ", train=AGREES) * 2),
    ),
    "prompt-beyond-context": (
        Fault(
            commands=(
                ends("evaluate", "^plan benchmark long: 2 of 3 questions are longer than the 495 tokens ", LATER),
                ends("evaluate", r"512 tokens, evaluate\.max_new_tokens is 600 .*: no prompt has room"),
                ends("benchmark", r"512 tokens, benchmark\.max_new_tokens is 600 .*: no prompt has room"),
            ),
            never=('"lossless": true',),
        ),
    ),
    "random-embeddings-in-draft": (
        Fault(
            commands=(
                ends("unpack", r"has no file 'exports\.json'; it has: config\.json, "),
                done("inspect", r"^│ weights +│ model\.safetensors: all there"),
                *(
                    done(
                        command,
                        r"^warning: The draft's embedding is not the target's \(relative distance embedding 1\.01, "
                        r"head 0, a copy has less than 0\.1\)",
                    )
                    for command in ("evaluate", "parity")
                ),
            ),
        ),
    ),
    "fewer-samples-than-batch": (
        Fault(
            commands=(
                *built(cache="^cache 20 rows read, 20 kept; 20 samples$"),
                done(
                    "train",
                    r"^train a step takes 512 samples \(train\.global_batch\) and there are 20 in the training split: "
                    r"each of them 25\.6 times a step",
                ),
                ends(
                    "train",
                    r"there is nothing to judge by: train\.patience=1 and train\.keep=best look at validation samples",
                ),
            ),
        ),
    ),
}
"""Targets and drafts that are not whole, not alike, or too small for what is asked."""

ENGINES: Mapping[str, Sequence[Fault]] = {
    "markup-in-engine-error": (
        Fault(
            commands=(
                done("prepare", "^prepare 6 rows read, 6 kept$"),
                done(
                    "regenerate",
                    r"^regenerate 6 prompts = 4 success \+ 2 error .*; 2 × Error code: # - # validation error for "
                    r"Request \[type=value_error, input_value='x', input_type=str\] see \[/docs\]$",
                ),
                done("status", r"^│ answers .*│ input 6, success 4, error 2, "),
            ),
        ),
    ),
    "finish-reason-eos-token": (
        Fault(
            commands=(
                done("prepare", "^prepare 6 rows read, 6 kept$"),
                done("regenerate", "^regenerate 6 prompts = 6 success ", never=(" is down ",)),
            ),
        ),
    ),
    "quota-for-a-day": (
        Fault(
            commands=(
                done("prepare", "^prepare 6 rows read, 6 kept$"),
                ends(
                    "",
                    r"^regenerate \S+ asks to be left alone until .* \(Error code: 429 - daily quota\)$",
                    r"^error: every endpoint asks to be left alone, at least until .*; 0 of 6 rows are kept, and the "
                    "same command goes on then$",
                ),
            ),
            never=(r"(busy_day\s[^$]*){13}",),
        ),
    ),
    "engine-cuts-prompt": (
        Fault(
            commands=(done("prepare"), ends("regenerate", LATER + "prepare"), ends("cache", LATER + "regenerate")),
        ),
        Fault(
            commands=(
                done("prepare", "^prepare 10 rows read, 10 kept$"),
                done(
                    "regenerate",
                    r"^regenerate 10 prompts = 5 success \+ 5 error .*; 5 × the engine read # tokens of a prompt that "
                    "has #: it cut it, or renders it otherwise; 5 rows answered to another prompt ",
                ),
                done("cache", "^cache 10 rows read, 5 kept, dropped: 4 status_error; 5 samples; "),
            ),
            also=("prepare.near_duplicates=null",),
            shown=("train error .*number 1: .* the engine read 200 tokens of a prompt that has 399: it cut it",),
        ),
    ),
}
"""Servers that answer wrongly, otherwise, or not at all."""

GOLDEN_TRAIN = done("train", AGREES)
FILE = r"/c/(manifest\.json|samples\.idx): "


def imported(*says: str) -> Told:
    """Return an import that refuses a cache."""
    return ends("cache import", *says, never=("^published ",))


CACHES: Mapping[str, Sequence[Fault]] = {
    "public-cache-import": (
        Fault(
            commands=(
                done("cache import", "^import 6 samples read, 6 kept$", "^published "),
                GOLDEN_TRAIN,
                imported(FILE + r"target_layer_ids: cannot capture layers \[21, 23, 25\] of a target with 7 layers; "),
                imported(FILE + r"target_layer_ids: cannot capture layers \[2, 4, 6\] of a target with 7 layers; "),
                imported("6 of 6 samples have fewer than 2 supervised tokens: nothing can be trained on"),
                imported(
                    FILE + r"sample 0 \(row 0, shard 0\): token 99999 is not in the target's vocabulary, 0 to 271"
                ),
                imported(FILE + r"sample 0 .*: the output of target layer 1 holds NaN or infinity"),
                imported(FILE + r"shards: shard-00000\.bin not there; fetch the cache again"),
                imported(FILE + r"sample 0 .*: names a shard that the manifest does not name"),
                imported(FILE + "num_samples: Input should be greater than 0; wanted a cache in the public "),
                imported(FILE + "target_layer_ids: Field required; wanted a cache in the public "),
                imported(FILE + "sample 7 .*: has an id that an earlier one has, too"),
                done("cache import", "^published "),
                ends("train", "differ from the target's own by .* Nothing was trained; ", code=1),
            ),
            needs=("golden",),
        ),
    ),
}
"""Caches in the public form that are damaged, incomplete, or of another target."""

MACHINE: Mapping[str, Sequence[Fault]] = {
    "odd-paths": (
        Fault(
            commands=(
                *trained(prepare="^prepare 40 rows read, 40 kept$", train=AGREES),
                done(
                    "status", *(rf"^│ {kind} +│ \w+ +│ published " for kind in ("prompts", "target_cache", "exports"))
                ),
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

SURROUNDINGS: Mapping[str, Sequence[Fault]] = {**TARGETS, **ENGINES, **CACHES, **MACHINE, **COMMANDS}

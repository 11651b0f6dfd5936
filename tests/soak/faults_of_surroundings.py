"""What is right for each folder of a faulty target, engine or cache: folder -> ways to run it."""

from collections.abc import Mapping, Sequence

from tests.soak.fault import AGREES, Fault, Told, built, done, ends, trained

LATER = r"is not published or stale; run first: deepspec "

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
        Fault(
            commands=(
                done(
                    "evaluate",
                    "^evaluate benchmark long: 2 of 3 questions will be left out, their prompts are longer ",
                    "^evaluate checking 1 samples against the target alone$",
                    "^evaluate left out: long: 2 of 3 turns were not asked, ",
                ),
                ends("evaluate", r"512 tokens, evaluate\.max_new_tokens is 600 .*: no prompt has room"),
                ends("benchmark", r"512 tokens, benchmark\.max_new_tokens is 600 .*: no prompt has room"),
            ),
            also=("dataset.benchmarks_dir=benchmarks",),
            shown=(r'"left_out": \["long: 2 of 3 turns were not asked, .*"lossless_samples": 1,',),
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
                done("status", r"^    4 of 6 prompts answered; 2 failed"),
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
            never=(r"(?s)(busy_day\n.*?){13}",),  # six rows, asked at most twice each
        ),
    ),
    "engine-faults": (
        Fault(
            commands=(
                done("prepare", "^prepare 24 rows read, 24 kept$"),
                *(
                    ends(
                        "regenerate",
                        r"^error: \d+ of \d+ rows .* cannot be used, and regenerate\.bad_share allows 0\.05 of them:$",
                        "1  refused  .*Error code: 400 - 1 validation error for Request .* see \\[/docs\\]$",
                        r"^mend the rows, or allow more with --set regenerate\.bad_share=…$",
                    )
                    for _ in range(2)
                ),
                ends("cache", LATER + "regenerate"),
            ),
        ),
        Fault(
            commands=(
                done("prepare", "^prepare 24 rows read, 24 kept$"),
                ends(
                    "regenerate",
                    "^error: 3 of 24 rows failed with errors that can pass, and wait in .*; run again",
                    code=1,
                ),
                done("regenerate", r"^regenerate 24 prompts = 13 success \+ 11 error \+ 0 skipped; "),
                done(
                    "cache", "^cache 24 rows read, 12 kept, dropped: 11 status_error, 1 template_rewrites; 12 samples$"
                ),
            ),
            also=("regenerate.bad_share=1", "cache.bad_share=1"),
            shown=(
                r"error .* CASE:filter .*  the answer was ended by 'content_filter'$",
                r"error .* CASE:null_finish .*  the answer was ended by None$",
                r"error .* CASE:null_reasoning .*  only reasoning, no content$",
                r"success \['stop'\] .* CASE:eos_token ",
                r"success \['stop'\] .* CASE:slow ",
                r"«Own answer 6b7083 word word word<\|im_end\|>'",
            ),
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

SURROUNDINGS: Mapping[str, Sequence[Fault]] = {**TARGETS, **ENGINES, **CACHES}

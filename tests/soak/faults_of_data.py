"""What is right for each folder of faulty rows and answers: folder -> ways to run it."""

from collections.abc import Mapping, Sequence

from tests.soak.fault import Fault, Told, built, done, dropped, ends


def twice(told: Told) -> tuple[Told, Told]:
    """Return `prepare` as it is and with bad_rows=drop, which is the default: the same, from the store."""
    return told, told if told.code else done("prepare", "^prepare: Cached, ")


def refused(*says: str) -> tuple[Fault, ...]:
    """Return a file of which no row can be used, whatever becomes of bad rows."""
    return (Fault(commands=twice(ends("prepare", *says))),)


RIVERS = r"'Name three rivers that flow north\.'"
BREAD = r"'Why does bread rise when it is left alone\?'"

ROWS: Mapping[str, Sequence[Fault]] = {
    "all-rows-bad": refused(
        "no row is left: " + dropped(5, 0, "5 unknown_shape"), r"rows\.jsonl:1: the row has the keys"
    ),
    "conversation-singular": refused(
        dropped(2, 0, "2 unknown_shape"), r"rows\.jsonl:1: the row has the keys \['conversation'\]"
    ),
    "messages-as-json-text": refused(
        dropped(1, 0, "1 unknown_shape"), r"rows\.jsonl:1: wanted a list of messages, got str"
    ),
    "cr-only": refused(r"rows\.jsonl: its lines end in \\r alone .*; mend it with: tr "),
    "utf16": refused(r"rows\.jsonl: UTF-16, not UTF-8; mend it with: iconv -f UTF-16 "),
    "json-array-named-jsonl": refused(r"rows\.jsonl: a JSON list, not one object a line; mend it with: jq -c "),
    "image-column": (
        Fault(
            commands=twice(done("prepare", dropped(4, 2, "2 not_text"))),
            shown=(RIVERS, BREAD),
            never=("What colour is the door", "Describe this picture"),
        ),
    ),
    "nan-in-tools": (Fault(commands=twice(done("prepare", dropped(3, 2, "1 bad_tools"))), shown=(RIVERS, BREAD)),),
    "nul-padding": (Fault(commands=twice(done("prepare", dropped(3, 2, "1 not_json"))), shown=(RIVERS, BREAD)),),
    "markup-in-role": (Fault(commands=twice(done("prepare", dropped(2, 1, "1 wrong_roles"))), shown=(RIVERS,)),),
    "roles-in-the-wild": (
        Fault(commands=twice(done("prepare", dropped(5, 2, "3 wrong_roles"))), shown=(RIVERS, BREAD)),
    ),
    "preference-rows": (
        Fault(
            commands=twice(done("prepare", "^prepare 2 rows read, 2 kept$")),
            shown=(r"'Rhyme on house\.'", r"'Rhyme on tree\.'"),
            never=("Car", "Bee"),
        ),
    ),
    "system-null": (
        Fault(
            commands=twice(done("prepare", dropped(3, 2, "1 wrong_roles"))),
            shown=(r"^ +user\+assistant train .*'What is rain\?'", r"^ +user\+assistant train .*'What is snow\?'"),
            never=("What is hail",),
        ),
    ),
    "lfs-pointer": (
        Fault(
            commands=(
                ends(
                    "prepare", r"rows\.jsonl is a git-lfs pointer, not the file itself; run in its folder: git lfs pull"
                ),
                ends(
                    "prepare",
                    r"rows\.parquet is a git-lfs pointer, not the file itself; run in its folder: git lfs pull",
                ),
                ends("prepare", r"model\.safetensors is a git-lfs pointer, .*git lfs pull"),
                ends("doctor", r"^│ target +│ failed "),
            )
        ),
    ),
    "huge-line": (Fault(commands=(done("prepare", "^prepare 2 rows read, "),)),),
}
"""Files of rows that are not as we would have them."""

BERN = (
    r"assistant\\n«<tool_call>\{\"name\": \"weather\", \"arguments\": \{\"city\": \"Bern\"\}\}</tool_call><\|im_end\|>"
)
BERN_XML = r"assistant\\n«<function=weather><parameter=city>Bern</parameter></function><\|im_end\|>"
WITHOUT_REASON = r"of them do not say how an answer ended; taken as 'stop'$"

ANSWERS: Mapping[str, Sequence[Fault]] = {
    "tool-arguments-tojson": (
        Fault(
            commands=built(
                "^regenerate 6 prompts = 6 success ",
                rows=r"^prepare 6 rows read, 6 kept$",
                cache="^cache 6 rows read, 6 kept; 6 samples$",
            ),
            shown=(BERN + r"»\\n<\|im_start\|>tool\\n.*«It is 21 degrees\.<\|im_end\|>'",),
            never=(r"«<tool_call>.*\"arguments\": \"",),
        ),
    ),
    "tool-arguments-items": (
        Fault(
            commands=built(
                "^regenerate 6 prompts = 6 success ",
                rows=r"^prepare 6 rows read, 6 kept$",
                cache="^cache 6 rows read, 6 kept; 6 samples$",
            ),
            shown=(BERN_XML + r"»\\n<\|im_start\|>tool\\n.*«It is 21 degrees\.<\|im_end\|>'",),
        ),
    ),
    "tool-arguments-engine": (
        Fault(
            commands=built(
                r"^regenerate 10 prompts = 10 success \+ 0 error ",
                rows=r"^prepare 10 rows read, 10 kept$",
                cache=r"^cache 10 rows read, 8 kept; 8 samples; rows of other splits: 2$",
            )
            * 4,
            shown=(
                r"try 1\? CASE:toolcall<\|im_end\|>\\n<\|im_start\|>" + BERN + "'",
                r"try 1\? CASE:toolcall<\|im_end\|>\\n<\|im_start\|>" + BERN_XML + "'",
                BERN + r"»\\n<\|im_start\|>tool\\n21<\|im_end\|>\\n<\|im_start\|>" + BERN + "'",
                BERN_XML + r"»\\n<\|im_start\|>tool\\n21<\|im_end\|>\\n<\|im_start\|>" + BERN_XML + "'",
                r"-> '' \[\{\"id\": \"c1\", .*\"arguments\": \"\{\\\"city\\\": \\\"Bern\\\"\}\"\}\}\]",
            ),
            never=(r"«<tool_call>.*\"arguments\": \"", r"\"(prompt_)?drifted\": [1-9]"),
        ),
    ),
    "empty-answer-cut": (
        Fault(
            commands=built(
                r"^regenerate 12 prompts = 10 success \+ 2 error .*"
                "; 2 × the answer is empty: max_tokens cut it before it said anything$",
                rows="^prepare 12 rows read, 12 kept$",
                cache="^cache 12 rows read, 10 kept, dropped: 1 status_error; 10 samples; rows of other splits: 1$",
            ),
            shown=(r"«Own answer 4f44d5 word word word<\|im_end\|>'", "calibration error .* the answer is empty: "),
            never=(r"assistant\\n«<\|im_end\|>",),
        ),
    ),
    "think-inline": (
        Fault(
            commands=built("^regenerate 6 prompts = 6 success ", cache="^cache 6 rows read, 6 kept; 6 samples$") * 2,
            also=("train.mask_token_id=null",),
            shown=(
                r"\"thinking\": 6,",
                r"assistant\\n«<think>\\nI add 0 and 3\.\\n</think>\\n\\n3\.<\|im_end\|>'",
            ),
            never=(r"</think>\\n\\n«",),
            needs=("golden",),
        ),
    ),
    "all-in-reasoning": (
        Fault(
            commands=(
                done("prepare", "^prepare 6 rows read, 6 kept$"),
                ends(
                    "regenerate",
                    "no answer can be adopted: 6 rows of answers read, 0 kept, dropped: 6 only_reasoning$",
                    r"answers\.jsonl:1: only reasoning, no content",
                ),
            )
            * 2,
            also=("train.mask_token_id=null",),
            needs=("golden",),
        ),
    ),
    "bad-answer-row-dropped": (
        Fault(
            commands=(
                *built(
                    dropped(14, 12, "1 not_text, 1 not_json"),
                    rows=dropped(14, 12, "1 not_json, 1 not_text"),
                    cache="^cache 12 rows read, 12 kept; 12 samples$",
                ),
                *(done(stage, f"^{stage}: Cached, ") for stage in ("prepare", "regenerate", "cache")),
            ),
            shown=(r"train success \['stop'\] 'Question number 0: .*' -> 'Wood floats 0 days\.'",),
        ),
    ),
    "finish-reason-singular": (
        Fault(
            commands=(
                done("prepare", "^prepare 8 rows read, 8 kept$"),
                done("regenerate", "^regenerate 8 prompts = 8 .*, 4 rows cut by max_tokens$", never=(WITHOUT_REASON,)),
                done("cache", "^cache 8 rows read, 8 kept; 8 samples$"),
            ),
            shown=("«Once there were 1 boats and th'", r"«There were 0 boats\.<\|im_end\|>'"),
            never=(r"boats and th<\|im_end\|>",),
        ),
    ),
    "weight-zero": (
        Fault(
            commands=built(WITHOUT_REASON, cache="^cache 6 rows read, 6 kept; 6 samples$"),
            shown=(r"Say 0 wrong\.<.*assistant\\nWrongwrong\.<\|im_end\|>\\n<.*assistant\\n«Right\.<\|im_end\|>'",),
            never=("«Wrong",),
        ),
    ),
    "no-system-role": (
        Fault(
            commands=(
                done("prepare"),
                done("regenerate"),
                ends(
                    "cache",
                    "no sample of the answers can be trained on: 6 rows read, 0 kept, dropped: 6 template_refuses$",
                    "the chat template of .* refuses it: System role not supported",
                ),
                *built(cache="^cache 12 rows read, 6 kept, dropped: 6 template_refuses; 6 samples$"),
            ),
            shown=(r"model\\n«0 bells ring\.<\|im_end\|>'",),
        ),
    ),
    "samples-beyond-context": (
        Fault(
            commands=(
                *built(
                    rows=dropped(14, 10, "4 near_duplicate"),
                    cache="^cache 10 rows read, 8 kept, dropped: 2 too_few_supervised; 8 samples; "
                    "2 of them cut at 512 tokens$",
                ),
                done(
                    "train",
                    "^plan the target reads 512 tokens, cache.max_length is 4096: samples are cut at 512 and counted$",
                ),
                done("cache stat", r"least, quartiles, most +│ .*, 512 +│$"),
            ),
        ),
    ),
    "date-in-template": (
        Fault(
            commands=(
                *built(
                    "; 40 rows for which nobody can tell here which date their prompts printed, or whether they did$",
                    cache="; rows without the date that the template reads, rendered with 2026-01-01: 39$",
                ),
                done("train", "^train the cache agrees with its target: 2 samples computed again, off by "),
                done("cache verify", r"^target_cache/\w+: sound; 39 samples read, 4 computed again$"),
            ),
            shown=(r"'<\|im_start\|>system\\nNow: 12:00:00<\|im_end\|>",),
        ),
    ),
    "template-edited-between-runs": (
        Fault(
            commands=(
                *built("^regenerate: Completed, ", cache="^cache 30 rows read, 30 kept; 30 samples$"),
                done("prepare", "^prepare: Cached, "),
                done("regenerate", "^regenerate: Completed, "),
                ends(
                    "cache",
                    r"^error: 30 of 30 rows \(100\.0%\) cannot be used, and cache\.bad_share allows 0\.05 of them:$",
                    "30  template_rewrites .* renders an answered turn unlike its generation prompt",
                    r"^mend the rows, or allow more with --set cache\.bad_share=…$",
                ),
                done("status", "^│ answers .* published ", "^│ target_cache .* published "),
            ),
            shown=(r"'<\|im_start\|>user\\nPlease describe gardens number 10 ",),
        ),
    ),
    "answers-edited-between-stages": (
        Fault(
            commands=(
                done("prepare", "^prepare 40 rows read, 40 kept$"),
                done("regenerate", "^regenerate 40 prompts = 40 success "),
                ends("cache", "/prompts/.* is not published or stale; run first: deepspec prepare"),
                done("status", "^│ answers .* published "),
            ),
            later=("is not published or stale; run first: ", "changed since the run was planned; run again"),
        ),
    ),
}
"""Files of answers, and templates that they do not fit: what becomes of them, and which tokens are supervised."""

DATA: Mapping[str, Sequence[Fault]] = {**ROWS, **ANSWERS}

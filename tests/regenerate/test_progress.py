"""What people read at the end."""

from typing import Any

from deepspec.regenerate.progress import accounts
from deepspec.regenerate.row_counts import total_counts


def counts(**more: Any) -> dict[str, Any]:
    return {**total_counts([]), **more}


def test_the_last_line_tells_all_sums() -> None:
    told = counts(
        input=40,
        success=36,
        error=3,
        skipped=1,
        completion_tokens=1234,
        truncated=2,
        prompt_drifted=2,
        without_usage=4,
        date_unknown=5,
        endpoints={"one": 20, "two": 16},
        reasons={"the answer is empty": 1, "the engine read # tokens": 2, "the id came before": 1},
    )
    assert accounts(told) == (
        "40 prompts = 36 success + 3 error + 1 skipped; 1234 tokens generated, 2 rows cut by max_tokens; "
        "20 by one, 16 by two; 2 × the engine read # tokens; 1 × the answer is empty; 1 × the id came before; "
        "2 rows answered to another prompt than the target's own template renders (errors); "
        "4 rows without the engine's count of tokens: that their prompts were not cut is not known; "
        "5 rows for which nobody can tell here which date their prompts printed, or whether they did"
    )


def test_what_is_as_it_should_be_is_not_told() -> None:
    assert accounts(counts(input=1, success=1)) == (
        "1 prompts = 1 success + 0 error + 0 skipped; 0 tokens generated, 0 rows cut by max_tokens"
    )


def test_many_and_long_reasons_stay_one_line() -> None:
    said = {f"{'x' * 200}\n[/docs] {n}": 10 - n for n in range(9)}
    line = accounts(counts(reasons=said))
    assert "\n" not in line
    assert f"; 10 × {'x' * 120}…; " in line
    assert line.endswith(f"; {5 + 4 + 3 + 2} × other reasons")

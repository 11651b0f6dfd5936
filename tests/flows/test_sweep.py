"""The leaderboard of a sweep."""

from flows.sweep import leaderboard


def test_a_leaderboard_puts_a_variant_without_scores_last():
    board = leaderboard({"unmeasured": {}, "short": {"0.0": 1.5}, "long": {"0.0": 2.25, "1.0": 1.75}})
    assert [row["variant"] for row in board] == ["long", "short", "unmeasured"]
    assert board[0] == {"variant": "long", "temperature 0": "2.250", "temperature 1": "1.750"}

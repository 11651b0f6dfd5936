"""What an engine sends: JSON, and for how long it asks to be left alone."""

import json
import math
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any

from deepspec.engines.failures import AskError

LONGEST_PAUSE = 31 * 86400.0
"""Seconds that an endpoint can ask to be left alone: quotas are given by the day or the month."""


def decoded(raw: bytes) -> dict[str, Any]:
    """Return a reply's JSON object.

    Raises:
        AskError: it is none.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AskError(f"the answer is not JSON: {error}", "odd", reason="odd_answer") from None
    if not isinstance(value, dict):
        told = f"the answer is {type(value).__name__}, wanted a JSON object"
        raise AskError(told, "odd", reason="odd_answer")
    return value


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an endpoint asks to be left alone: it says how many, or until when; a month at most."""
    try:
        seconds = _seconds(headers)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return min(max(0.0, seconds), LONGEST_PAUSE) if math.isfinite(seconds) else None


def _seconds(headers: Mapping[str, str]) -> float:
    if headers.get("retry-after-ms"):
        return float(headers["retry-after-ms"]) / 1000
    told = headers.get("retry-after", "")
    until = parsedate_tz(told)
    if until is None:
        return float(told)
    now = parsedate_tz(headers.get("date", ""))  # its clock may be another than ours
    return mktime_tz(until) - (mktime_tz(now) if now else time.time())

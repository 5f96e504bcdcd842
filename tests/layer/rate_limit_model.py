"""A plain model of the rate limit, and what the tests of both backends share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from weather_station.production.inbound.rate_limit import MICROSECONDS, Rate
from weather_station.production.observe.meter import NullMeter

DAY = 86_400
LIMITS = st.one_of(st.integers(1, 12), st.integers(1, 10**9), st.sampled_from([7, 999_983, 999_999_937, 10**9]))
WINDOWS = st.one_of(st.integers(1, 3), st.integers(1, DAY), st.just(DAY)).map(lambda seconds: seconds * MICROSECONDS)
RATES = st.builds(Rate, LIMITS, WINDOWS)
REJECTION = re.compile(r"Rate limit exceeded\. 0 requests remaining\. Try again in (\d+) seconds\.")


def limited(limit: int, window: int = DAY) -> dict[str, int]:
    """Return the settings of a limit."""
    return {"rate_limit_requests": limit, "rate_limit_window_seconds": window}


class TokenBucket:
    """A bucket of tokens that fills evenly, in exact fractions."""

    def __init__(self, rate: Rate, now: int, tokens: Fraction | None = None) -> None:
        self.rate = rate
        self.tokens = Fraction(rate.limit) if tokens is None else tokens
        self.seen_at = now

    def fill(self, now: int) -> None:
        gained = Fraction((now - self.seen_at) * self.rate.limit, self.rate.window)
        self.tokens = min(Fraction(self.rate.limit), self.tokens + gained)
        self.seen_at = now

    def spend(self, now: int, cost: int = 1) -> int:
        """Take `cost` tokens; return 0, or the microseconds until there are as many, rounded up."""
        self.fill(now)
        if self.tokens >= cost:
            self.tokens -= cost
            return 0
        return math.ceil((cost - self.tokens) * self.rate.window / self.rate.limit)

    def remaining(self, now: int) -> int:
        self.fill(now)
        return math.floor(self.tokens)


class RecordingMeter(NullMeter):
    """Counts in a dictionary, in projects with and without metrics."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}

    def counter(self, *declaration: object, **options: object) -> Callable[..., Any]:
        meter, name = self, str(declaration[0])

        class Recorded:
            def inc(self, amount: float = 1) -> None:
                meter.counts[name] = meter.counts.get(name, 0) + amount

        return lambda *values: Recorded()

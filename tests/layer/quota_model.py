"""A plain model of all limits of a caller, and a state machine that holds a backend to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from rate_limit_model import DAY
from weather_station.production.inbound.caller_quota import Admit, Decision, Demand
from weather_station.production.inbound.rate_limit import MICROSECONDS, Rate

CALLERS = st.sampled_from(["a", "b"])
COSTS = st.integers(0, 5)


class AgainstModel(RuleBasedStateMachine):
    """Any requests of two callers: a backend admits what the plain model admits, and says why it rejects.

    Permits return within a day, so none returns during the test.
    """

    admit: Admit
    loop: asyncio.Runner

    def day_passes(self) -> None:
        """Make the backend believe that a day has passed since the last request."""
        raise NotImplementedError

    def lose(self, caller: str, request_id: str) -> None:
        """Make the backend forget a request whose process has ended."""
        raise NotImplementedError

    @initialize(limit=st.integers(1, 12), daily=st.integers(0, 9), slots=st.integers(0, 3))
    def begin(self, limit: int, daily: int, slots: int) -> None:
        self.rate, self.daily, self.slots = Rate(limit, DAY * MICROSECONDS), daily, slots
        self.permits = dict.fromkeys("ab", limit)
        self.used = dict.fromkeys("ab", 0)
        self.running: dict[str, dict[str, Callable[[], None] | None]] = {"a": {}, "b": {}}
        self.numbers = itertools.count()

    def expected(self, caller: str, cost: int) -> str | None:
        if self.slots and len(self.running[caller]) >= self.slots:
            return "TooManyAtOnce"
        if self.daily and self.used[caller] + cost > self.daily:
            return "QuotaExceeded"
        return "RateLimited" if cost > self.permits[caller] else None

    @rule(caller=CALLERS, cost=COSTS)
    def request(self, caller: str, cost: int) -> None:
        request_id = str(next(self.numbers))
        demand = Demand(caller, caller, cost, self.rate, self.daily, self.slots, request_id, 3600)
        expected = self.expected(caller, cost)
        decision: Decision = self.loop.run(_awaited(self.admit, demand))
        assert decision.reason == expected
        if expected == "QuotaExceeded":
            assert decision.number == self.used[caller]
            assert 0 < decision.wait <= DAY * MICROSECONDS
        elif expected == "RateLimited":
            assert self.rate.remaining(decision.number) == self.permits[caller]
        elif expected is None:
            self.permits[caller] -= cost
            self.used[caller] += cost
            assert (decision.release is not None) == bool(self.slots)
            if self.slots:
                self.running[caller][request_id] = decision.release

    @rule(caller=CALLERS, data=st.data())
    def a_request_ends(self, caller: str, data: st.DataObject) -> None:
        if self.running[caller]:
            release = self.running[caller].pop(data.draw(st.sampled_from(sorted(self.running[caller]))))
            assert release is not None
            self.loop.run(_released(release))

    @rule(caller=CALLERS, data=st.data())
    def a_process_ends(self, caller: str, data: st.DataObject) -> None:
        if self.running[caller]:
            request_id = data.draw(st.sampled_from(sorted(self.running[caller])))
            del self.running[caller][request_id]
            self.lose(caller, request_id)

    @rule()
    def midnight(self) -> None:
        self.day_passes()
        self.used = dict.fromkeys("ab", 0)


async def _awaited(admit: Admit, demand: Demand) -> Any:
    return await admit(demand)


async def _released(release: Callable[[], None]) -> None:
    others = asyncio.all_tasks()
    release()
    if started := asyncio.all_tasks() - others:
        await asyncio.wait(started)

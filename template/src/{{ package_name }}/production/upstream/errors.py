"""Exceptions of the upstream client.

Their texts are for the model: they name the upstream's host, and state whether and when another attempt can help. They
never contain the query of a URL, the value of a header or a body.
"""

from __future__ import annotations

from enum import Enum
from math import ceil
from typing import Any, ClassVar

import httpx2
from mcp.server.mcpserver.exceptions import ToolError

RETRY_LATER = "Trying again later may help."
NO_RETRY = "Trying again will not help."


class Verdict(Enum):
    """What an attempt says about the upstream."""

    SUCCESS = "success"
    """It works, even if it answered 404."""
    FAILURE = "failure"
    """It is down."""
    NEUTRAL = "neutral"
    """Nothing, as when the attempt was cancelled."""


class UpstreamError(ToolError):
    """The upstream gave no usable response. The model gets the text, unless the tool catches the exception."""

    outcome: ClassVar[str] = "error"
    """Label of the attempt in `mcp_upstream_requests_total`."""

    def __init__(
        self,
        problem: str,
        advice: str = NO_RETRY,
        *,
        host: str,
        status: int | None = None,
        retry_after: float | None = None,
        may_retry: bool = False,
        verdict: Verdict = Verdict.NEUTRAL,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.host = host
        """Host of the upstream, with its port where that is not the scheme's own; or the name of a circuit."""
        self.status = status
        """Status of the response; `None` without a response."""
        self.retry_after = retry_after
        """Seconds until another try can help; `None` if unknown."""
        self.may_retry = may_retry
        """Whether another attempt can succeed and is safe."""
        self.verdict = verdict
        self.attempts = 1
        """Number of attempts, retries included."""

    def __str__(self) -> str:
        attempts = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.problem}{attempts}. {self.advice}"


class UpstreamConnectError(UpstreamError):
    """No connection. The request was never sent, so that it is safe to send again, whatever its method."""

    outcome = "connect_error"


class UpstreamTimeoutError(UpstreamError):
    """No complete response within the attempt's timeout or the request's deadline."""

    outcome = "timeout"


class UpstreamInterruptedError(UpstreamError):
    """The connection broke before the response was complete."""

    outcome = "interrupted"


class UpstreamStatusError(UpstreamError):
    """A response with a status of 400 or more. `response` is for the tool; the text for the model has the status."""

    def __init__(self, *args: Any, response: httpx2.Response, **attributes: Any) -> None:
        super().__init__(*args, status=response.status_code, **attributes)
        self.response = response


class UpstreamResponseError(UpstreamError):
    """A response that cannot be used: too large, not JSON, or a redirect that is not followed."""

    outcome = "unusable"


def ungrouped(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group and its nested groups; for any other exception, the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        return [single for inner in error.exceptions for single in ungrouped(inner)]
    return [error]


def seconds_text(seconds: float) -> str:
    """Return `seconds`, rounded up to at least 1, as text: `1 second`, `20 seconds`."""
    rounded = max(1, ceil(seconds))
    return f"{rounded} second{'' if rounded == 1 else 's'}"

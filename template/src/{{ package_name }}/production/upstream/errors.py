"""What goes wrong between the server and its upstream, with texts made for the model.

A text names the upstream's host, says whether and when trying again helps, and never holds a URL's query, a header's
value or a body.
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
    """It works: also where it answered 404."""
    FAILURE = "failure"
    """It is down."""
    NEUTRAL = "neutral"
    """Neither, as when the attempt was cancelled."""


class UpstreamError(ToolError):
    """The upstream gave no usable answer. If a tool does not catch it, the model gets its text."""

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
        """Status of the response, if there is one."""
        self.retry_after = retry_after
        """Seconds until trying again can help, if they are known."""
        self.may_retry = may_retry
        """Whether another attempt can succeed and is safe."""
        self.verdict = verdict
        self.attempts = 1
        """How often the request was tried."""

    def __str__(self) -> str:
        attempts = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.problem}{attempts}. {self.advice}"


class UpstreamConnectError(UpstreamError):
    """No connection: the request was never sent, so it is safe to send again whatever its method."""

    outcome = "connect_error"


class UpstreamTimeoutError(UpstreamError):
    """No complete response within the attempt's timeout or the request's deadline."""

    outcome = "timeout"


class UpstreamInterruptedError(UpstreamError):
    """The connection broke before the response was complete."""

    outcome = "interrupted"


class UpstreamStatusError(UpstreamError):
    """A response with a status of 400 or more. `response` is for the tool only: the model gets the status."""

    def __init__(self, *args: Any, response: httpx2.Response, **attributes: Any) -> None:
        super().__init__(*args, status=response.status_code, **attributes)
        self.response = response


class UpstreamResponseError(UpstreamError):
    """A response that cannot be used: too large, not JSON, or a redirect that is not followed."""

    outcome = "unusable"


def seconds_text(seconds: float) -> str:
    """Return `seconds`, rounded up, as the model reads them: `1 second`, `20 seconds`."""
    whole = max(1, ceil(seconds))
    return f"{whole} second{'' if whole == 1 else 's'}"

"""Access tokens for the upstream, from a token endpoint (RFC 6749, section 3.2)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote_plus, urlsplit

import httpx2
import structlog
from mcp.server.auth.middleware.auth_context import auth_context_var

from ..caller import Caller, User
from ..config import ConfigError, ProductionConfig, without_credentials
from ..environment import tls_context
from ..registry import Probe, Registry
from .credentials import Credentials
from .credentials_source import NoSource, Obtained, install_source
from .errors import RETRY_LATER, UpstreamError, Verdict

SKEW_SECONDS = 30.0
"""Seconds before its expiry from which a token is not used; at most half of its lifetime."""

TIMEOUT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 256 * 1024
LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""

Form = Callable[[str], Mapping[str, str]]
"""Returns the parameters of the grant for a caller's token, beside those of client authentication."""

_ERROR = re.compile(r"[a-z_]{1,40}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")

log = structlog.stdlib.get_logger(__name__)


def install_grant(registry: Registry, form: Form, *, needs_token: bool) -> None:
    """Send requests to the upstream with a token of `UPSTREAM_TOKEN_URL`, or reject them while that is not set.

    Args:
        registry: The server's registry.
        form: The parameters of the grant.
        needs_token: Whether the token is issued in exchange for that of the caller.

    Raises:
        ConfigError: one of the settings is missing.
    """
    config = registry.config
    settings = {
        "UPSTREAM_TOKEN_URL": config.upstream_token_url,
        "UPSTREAM_CLIENT_ID": config.upstream_client_id,
        "UPSTREAM_CLIENT_SECRET": config.upstream_client_secret,
    }
    missing = [name for name, value in settings.items() if not value]
    if len(missing) == len(settings):
        install_source(registry, NoSource(registry, ", ".join(missing)))
        return
    if missing:
        raise ConfigError([f"{name}: must be set with the others of {', '.join(settings)}" for name in missing])
    endpoint = TokenEndpoint(registry, form, needs_token)
    registry.on_startup.append(endpoint.open)
    registry.on_shutdown.append(endpoint.close)
    registry.health.probes["tokens"] = Probe(without_credentials(config.upstream_token_url or ""), "tcp")
    install_source(registry, endpoint)


def configured(config: ProductionConfig, *names: str) -> dict[str, str]:
    """Return those of the parameters scope, audience and resource in `names` that are configured."""
    return {name: value for name in names if (value := getattr(config, f"upstream_{name}"))}


class TokenEndpoint:
    """Issues tokens of one grant."""

    def __init__(self, registry: Registry, form: Form, needs_token: bool) -> None:
        config = registry.config
        self._url = config.upstream_token_url or ""
        self._host = urlsplit(self._url).netloc
        self._form = form
        self._needs_token = needs_token
        secret = config.upstream_client_secret
        self._client_id = config.upstream_client_id
        self._secret = secret.get_secret_value() if secret else ""
        self._basic = config.upstream_client_auth == "basic"
        make_circuit = registry.upstream.circuit
        self._circuit = make_circuit(f"{self._host} (tokens)") if make_circuit else None
        self._latency = registry.meter.histogram(
            "mcp_upstream_token_latency_seconds",
            "Duration of requests to the token endpoint in seconds.",
            buckets=LATENCY_BUCKETS,
        )()
        self._client: httpx2.AsyncClient | None = None

    async def open(self) -> None:
        self._client = httpx2.AsyncClient(verify=tls_context(), timeout=TIMEOUT_SECONDS)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def key(self, caller: Caller | None) -> bytes:
        if not self._needs_token:
            return b""
        return sha256(self._callers_token().encode()).digest()

    async def obtain(self, caller: Caller | None) -> Obtained:
        form = dict(self._form(self._callers_token() if self._needs_token else ""))
        if self._circuit is None:
            return await self._request(form)
        generation = self._circuit.admit()
        verdict = Verdict.NEUTRAL
        try:
            obtained = await self._request(form)
            verdict = Verdict.SUCCESS
            return obtained
        except UpstreamError as error:
            verdict = Verdict.FAILURE if error.verdict is Verdict.FAILURE else Verdict.SUCCESS
            raise
        finally:
            self._circuit.record(generation, verdict)

    def _callers_token(self) -> str:
        user = auth_context_var.get()
        token = user.subject_token if isinstance(user, User) else ""
        if not token:
            raise UpstreamError("This caller has no access token that can be exchanged", host=self._host)
        return token

    async def _request(self, form: dict[str, str]) -> Obtained:
        """Send the form and return the token of the response.

        Raises:
            UpstreamError: the response has no usable token.
        """
        auth = None
        if self._basic:  # RFC 6749, section 2.3.1
            auth = httpx2.BasicAuth(quote_plus(self._client_id), quote_plus(self._secret))
        else:
            form |= {"client_id": self._client_id, "client_secret": self._secret}
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, document = await self._post(form, auth)
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            raise self._failure(str(error) or type(error).__name__) from None
        finally:
            self._latency.observe(asyncio.get_running_loop().time() - began)
        if status >= 500 or status == 429:
            raise self._failure(f"status {status}")
        token = document.get("access_token")
        if status != 200 or not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._rejection(status, document)
        if str(document.get("token_type")).lower() != "bearer":
            raise self._rejection(status, {"error": "unsupported_token_type"})
        return Obtained(Credentials("Authorization", f"Bearer {token}"), _lifetime(document.get("expires_in")))

    async def _post(self, form: dict[str, str], auth: httpx2.BasicAuth | None) -> tuple[int, dict[str, Any]]:
        if self._client is None:
            raise ValueError("the server is not running")
        body = bytearray()
        async with self._client.stream(
            "POST", self._url, data=form, auth=auth, headers={"accept": "application/json"}
        ) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_RESPONSE_BYTES:
                    raise ValueError(f"more than {MAX_RESPONSE_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        return response.status_code, document if isinstance(document, dict) else {}

    def _failure(self, problem: str) -> UpstreamError:
        log.warning("no token for the upstream", host=self._host, problem=problem)
        return UpstreamError(f"{self._host} issued no token", RETRY_LATER, host=self._host, verdict=Verdict.FAILURE)

    def _rejection(self, status: int, document: Mapping[str, Any]) -> UpstreamError:
        error = document.get("error")
        code = error if isinstance(error, str) and _ERROR.fullmatch(error) else f"status {status}"
        log.warning("no token for the upstream", host=self._host, problem=code)
        advice = "The user has to sign in again." if code == "interaction_required" else "Trying again will not help."
        return UpstreamError(f"{self._host} issued no token ({code})", advice, host=self._host)


def _lifetime(expires_in: object) -> float:
    """Return how many seconds to keep a token; 0 if the response has no lifetime."""
    try:
        seconds = float(expires_in) if isinstance(expires_in, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        return 0.0
    return max(seconds - SKEW_SECONDS, seconds / 2) if 0 < seconds < 10**9 else 0.0

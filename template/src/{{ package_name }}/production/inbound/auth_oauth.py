"""Authentication by sign-in: this server is its own small authorization server in front of an identity provider.

MCP clients register here, or have a document about themselves; users sign in with the identity provider; the tokens are
ours, short-lived and good for this server only. `docs/auth_oauth.md` has a picture of it.
"""

from __future__ import annotations

import os
from functools import partial

import structlog
from starlette.requests import Request

from ..config import without_credentials
from ..observe.rejections import Rejections
from ..registry import Probe, Registry
from . import auth, auth_oauth_settings
from .auth_oauth_clients import Documents
from .auth_oauth_pages import Pages
from .auth_oauth_provider import IdentityProvider
from .auth_oauth_redis import RedisStore
from .auth_oauth_server import AuthorizationServer, Outcomes
from .auth_oauth_settings import OAuthSettings, key_ring
from .auth_oauth_store import KeyRing, MemoryStore, Records, Store
from .identity import peer_address

HINT = "PUBLIC_URL, OAUTH_ISSUER, OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET"

SIGN_INS = (
    "completed",
    "denied",
    "not_admitted",
    "rejected",
    "unavailable",
    "expired",
    "forged",
    "invalid_request",
    "token",
)
TOKENS = ("issued", "refreshed", "revoked", "reused", "replayed", "ended", "signed_out")
CLIENTS = ("registered", "rejected", "limited")

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry) -> None:
    """Require a token for which a user has signed in, or a loopback address where the sign-in is not configured.

    Raises:
        ConfigError: the settings are incomplete or contradict each other.
    """
    config = registry.config
    methods = auth.methods(registry)
    if config.transport == "stdio":
        return
    settings = auth_oauth_settings.load(config)
    if settings is None or config.public_url is None:
        methods.report(OAUTH_CLIENT_ID=None)
        methods.add("oauth", HINT, None)
        return
    methods.report(OAUTH_CLIENT_ID=settings.client_id, OAUTH_CLIENT_SECRET=settings.client_secret)
    issuer = config.public_url
    provider = IdentityProvider(settings, f"{issuer}/oauth/callback", registry.secrets.add)
    ring = key_ring(settings.keys)
    for secret in (settings.client_secret.get_secret_value() if settings.client_secret else "", *ring):
        registry.secrets.add(secret)
    store = _store(registry, settings)
    meter = registry.meter
    recorded = partial(Outcomes, registry)
    counter = meter.counter("mcp_oauth_tokens_total", "Tokens and sessions, by what happened to them.", ("outcome",))
    tokens = recorded("token", counter, TOKENS)
    counter = meter.counter("mcp_oauth_sign_ins_total", "Sign-ins and requests for tokens, by outcome.", ("outcome",))
    sign_ins = recorded("sign_in", counter, SIGN_INS)
    counter = meter.counter("mcp_oauth_registrations_total", "Registrations of clients, by outcome.", ("outcome",))
    clients = recorded("registration", counter, CLIENTS)
    proxy = settings.client_metadata_proxy
    documents = Documents(settings.supported_scopes, proxy) if settings.client_metadata else None
    server = AuthorizationServer(
        settings,
        provider,
        Records(store, KeyRing(ring)),
        documents,
        issuer=issuer,
        resource=f"{issuer}/mcp",
        tokens=tokens,
        shared=isinstance(store, RedisStore),
    )
    if not methods.add("oauth", HINT, server.verify):
        return
    address = peer_address(config.trusted_proxies)

    def peer(request: Request) -> str:
        return address(request)

    rejected = Rejections(registry)
    pages = Pages(server, registry.about.title, peer, rejected, sign_ins, clients)
    registry.http.routes += pages.routes()
    methods.challenge = lambda scope: pages.challenge
    registry.on_startup.append(provider.open)
    registry.on_shutdown.append(provider.close)
    registry.on_shutdown.append(store.close)
    if documents is not None:
        registry.on_startup.append(documents.open)
        registry.on_shutdown.append(documents.close)
    registry.health.parts.append(provider.health)
    registry.health.probes["sign-in"] = Probe(without_credentials(provider.issuer), provider.check)


def _store(registry: Registry, settings: OAuthSettings) -> Store:
    """Return the store of the sign-in: Redis, or the memory of this process.

    Raises:
        ConfigError: `REDIS_URL` is not the URL of a Redis server.
    """
    url = registry.config.redis_url
    if url is None:
        registry.notices.append("REDIS_URL is not set: a restart signs everyone out, and only one replica can run")
        registry.http.start_checks.append(_cluster_problems)
        return MemoryStore()
    store = RedisStore(url.get_secret_value(), registry.about.name)
    registry.health.probes["sign-in store"] = Probe(without_credentials(url.get_secret_value()), store.ping)
    return store


def _cluster_problems() -> list[str]:
    in_cluster = os.environ.get("KUBERNETES_SERVICE_HOST")
    return ["REDIS_URL: must be set in Kubernetes, where a pod is replaced at any time"] if in_cluster else []

"""What the sign-in remembers: records that expire, sealed with a ring of keys, and the tokens that the ring signs."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jwt
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_RECORDS_OF_A_KIND = 10_000
"""Records of one kind that the memory of a process holds."""

ALGORITHM = "HS256"

Record = dict[str, Any]


class StoreUnavailableError(Exception):
    """The store does not answer, or is full; the text has no credentials."""


class Store(Protocol):
    """Values that expire. A key begins with the kind of its record and a colon.

    Each method raises `StoreUnavailableError`.
    """

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    async def put(self, key: str, value: bytes, seconds: float) -> None: ...

    async def add(self, key: str, value: bytes, seconds: float) -> bool:
        """Put a value unless there is one, and return whether there was none."""
        ...

    async def replace(self, key: str, value: bytes, seconds: float) -> bool:
        """Put a value if there is one, and return whether there was one."""
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def take(self, key: str) -> bytes | None:
        """Return and delete a value; only one of several simultaneous calls gets it."""
        ...

    async def delete(self, key: str) -> None: ...

    async def count(self, key: str, seconds: float) -> int:
        """Count a call, and return how many there have been since the first one at most `seconds` ago."""
        ...


class MemoryStore:
    """Records in the memory of this process."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, tuple[bytes, float]]] = {}

    async def close(self) -> None:
        """Do nothing."""

    async def ping(self) -> None:
        """Do nothing."""

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        records = self._of_kind(key)
        now = time.monotonic()
        if key not in records and len(records) >= MAX_RECORDS_OF_A_KIND:
            for old in [name for name, (_, until) in records.items() if until <= now]:
                del records[old]
            if len(records) >= MAX_RECORDS_OF_A_KIND:
                if not key.startswith("count:"):
                    raise StoreUnavailableError("the store is full")
                del records[next(iter(records))]  # many addresses must not keep all others out
        records[key] = (value, now + seconds)

    async def add(self, key: str, value: bytes, seconds: float) -> bool:
        if await self.get(key) is not None:
            return False
        await self.put(key, value, seconds)
        return True

    async def replace(self, key: str, value: bytes, seconds: float) -> bool:
        if await self.get(key) is None:
            return False
        await self.put(key, value, seconds)
        return True

    async def get(self, key: str) -> bytes | None:
        value, until = self._of_kind(key).get(key, (None, 0.0))
        return value if time.monotonic() < until else None

    async def take(self, key: str) -> bytes | None:
        value = await self.get(key)
        await self.delete(key)
        return value

    async def delete(self, key: str) -> None:
        self._of_kind(key).pop(key, None)

    async def count(self, key: str, seconds: float) -> int:
        records = self._of_kind(key)
        value, until = records.get(key, (b"0", 0.0))
        if time.monotonic() >= until:
            await self.put(key, b"1", seconds)
            return 1
        records[key] = (str(int(value) + 1).encode(), until)
        return int(value) + 1

    def _of_kind(self, key: str) -> dict[str, tuple[bytes, float]]:
        return self._kinds.setdefault(key.partition(":")[0], {})


class KeyRing:
    """Keys of which the first one seals and signs, and all of them open and verify."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Derive the keys of each purpose.

        Args:
            keys: The ring; without keys it has a random one, which this process only knows.
        """
        ring = keys or (secrets.token_urlsafe(32),)
        self._fernet = MultiFernet([Fernet(urlsafe_b64encode(_derived(key, b"records"))) for key in ring])
        self._signing = {_derived(key, b"key id").hex()[:16]: _derived(key, b"tokens") for key in ring}

    def seal(self, name: str, record: Mapping[str, Any]) -> bytes:
        return self._fernet.encrypt(json.dumps([name, record]).encode())

    def open(self, name: str, sealed: bytes | None) -> Record | None:
        """Return the record that was sealed for `name`, or `None` if none of the keys opens it."""
        try:
            found, record = json.loads(self._fernet.decrypt(sealed or b""))
        except (InvalidToken, ValueError):
            return None
        return record if found == name and isinstance(record, dict) else None

    def sign(self, kind: str, claims: Mapping[str, Any]) -> str:
        """Return a JWT of a kind, its `typ` (RFC 8725, section 3.11)."""
        kid, key = next(iter(self._signing.items()))
        return jwt.encode(dict(claims), key, ALGORITHM, headers={"typ": kind, "kid": kid})

    def verify(self, kind: str, token: str, issuer: str, audience: str) -> Record | None:
        """Return the claims of a JWT of this ring, this kind, issuer and audience, unless it has expired."""
        try:
            header = jwt.get_unverified_header(token)
            key = self._signing.get(str(header.get("kid")))
            if key is None or header.get("typ") != kind:
                return None
            claims: Record = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=issuer,
                options={"require": ["exp", "sid"]},
            )
        except (jwt.PyJWTError, RecursionError):
            return None
        return claims


def _derived(key: str, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, b"mcp-server oauth " + purpose).derive(key.encode())


def digest(value: str) -> str:
    """Return the hash that stands for a secret in keys of the store, so that the keys reveal no secret."""
    return hashlib.sha256(value.encode()).hexdigest()


class Records:
    """Sealed records in a store."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self.store = store
        self.ring = ring

    async def put(self, key: str, record: Record, seconds: float) -> None:
        await self.store.put(key, self.ring.seal(key, record), seconds)

    async def replace(self, key: str, record: Record, seconds: float) -> bool:
        return await self.store.replace(key, self.ring.seal(key, record), seconds)

    async def get(self, key: str) -> Record | None:
        return self.ring.open(key, await self.store.get(key))

    async def take(self, key: str) -> Record | None:
        return self.ring.open(key, await self.store.take(key))

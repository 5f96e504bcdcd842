"""However a value is put together, no secret in it comes out, everything else does, and the value stays as it was."""

from __future__ import annotations

import copy
import json
import time
import uuid
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from weather_station.production.observe.redaction import (
    KEYS,
    MAX_DEPTH,
    WORDS,
    Redactor,
    configured_secrets,
)

from harness import config

SEPARATORS = st.sampled_from(["", "-", "_", ".", " "])
SECRET_KEYS = st.builds(
    lambda before, word, after, upper: (before + word + after).upper() if upper else before + word + after,
    st.sampled_from(["", "x-", "my_", "Old"]),
    st.one_of(st.sampled_from(WORDS), st.builds("{}{}key".format, st.sampled_from(KEYS), SEPARATORS)),
    st.sampled_from(["", "_2", ".value"]),
    st.booleans(),
)
KINDS = st.sampled_from([dict, list])
PLAIN_KEYS = st.sampled_from(["city", "count", "monkey", "keyboard", "page", "Straße", "a b", ""])
CONFIGURED = ("hunter/hunter+1", "correct horse, 2")
AROUND = st.sampled_from(["{}", "before {} after", "x{}x", "https://host/{}/path", "['{}']"])


class Nested:
    """A container in the value, its depth, and whether it is somewhere under a secret's key."""

    def __init__(self, content: Any, depth: int, *, secret: bool) -> None:
        self.content = content
        self.depth = depth
        self.secret = secret

    def put(self, key: str, value: object) -> str:
        """Adds `value`, in a mapping under a key that is not taken yet; returns that key, or nothing in a list."""
        if isinstance(self.content, list):
            self.content.append(value)
            return ""
        while key in self.content:
            key += "_"
        self.content[key] = value
        return key


class Redaction(RuleBasedStateMachine):
    """Grows a value, step by step; what must not and what must come out is told when it goes in."""

    containers: Bundle[Nested] = Bundle("containers")

    @initialize(target=containers)
    def begin(self) -> Nested:
        self.root: dict[str, Any] = {}
        self.secrets = set(CONFIGURED)
        self.plain: set[str] = set()
        self.redactor = Redactor(CONFIGURED)
        return Nested(self.root, 1, secret=False)

    def new(self, container: Nested, *, secret: bool = False) -> str:
        """A text like no other, to be put into `container`."""
        text = f"value{uuid.uuid4().hex}"
        if secret or container.secret:
            self.secrets.add(text)
        elif container.depth <= MAX_DEPTH:
            self.plain.add(text)
        return text

    @rule(target=containers, container=containers, key=PLAIN_KEYS, kinds=st.lists(KINDS, min_size=1, max_size=4))
    def nest(self, container: Nested, key: str, kinds: list[type[Any]]) -> Nested:
        for kind in kinds:
            content = kind()
            container.put(key, content)
            container = Nested(content, container.depth + 1, secret=container.secret)
        return container

    @rule(target=containers, container=containers, key=SECRET_KEYS, kind=KINDS)
    def nest_under_a_secret_key(self, container: Nested, key: str, kind: type[Any]) -> Nested:
        content = kind()
        container.put(key, content)
        secret = container.secret or isinstance(container.content, dict)
        return Nested(content, container.depth + 1, secret=secret)

    @rule(container=containers, key=PLAIN_KEYS)
    def add_plain(self, container: Nested, key: str) -> None:
        container.put(key, self.new(container))

    @rule(container=containers, key=SECRET_KEYS)
    def add_under_a_secret_key(self, container: Nested, key: str) -> None:
        secret = self.new(container, secret=True)
        if isinstance(container.content, dict):
            container.put(key, secret)
        else:
            container.put("", (key.replace(" ", "-"), secret))  # a header

    @rule(container=containers, key=PLAIN_KEYS, word=st.sampled_from(WORDS), sign=st.sampled_from(["=", " = ", "': '"]))
    def add_an_assignment_in_a_text(self, container: Nested, key: str, word: str, sign: str) -> None:
        container.put(key, f"failed with {word}{sign}{self.new(container, secret=True)}' and more")

    @rule(container=containers, key=PLAIN_KEYS, around=AROUND, secret=st.sampled_from(CONFIGURED))
    def add_a_configured_secret(self, container: Nested, key: str, around: str, secret: str) -> None:
        container.put(key, around.format(secret))

    @rule(container=containers, around=AROUND)
    def add_values_under_configured_secrets(self, container: Nested, around: str) -> None:
        for secret in CONFIGURED:
            container.put(around.format(secret), self.new(container))

    @invariant()
    def only_the_secrets_are_missing(self) -> None:
        before = copy.deepcopy(self.root)
        shown = json.dumps(self.redactor.value(self.root))
        assert self.root == before
        assert [secret for secret in self.secrets if secret in shown] == []
        assert [text for text in self.plain if text not in shown] == []


SIGNED = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize("around", ["{}", "x{}", "%3D{}", "eyJ_{}", "eyJx.y.{}", "eyj-{} eyj", "a.{}.b", "eyJshort {}"])
def test_a_web_token_is_found_wherever_it_begins(around: str) -> None:
    assert "c2lnbmF0dXJl" not in Redactor().text(around.format(SIGNED))


@pytest.mark.parametrize("piece", ["eyJ", "eyJaaaaaaaa.", "eyJ-eyj.", "eyJaaaaaaaa.aaaaaaaa"])
def test_looking_for_web_tokens_takes_time_in_proportion_to_the_text(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        started = time.process_time()
        Redactor().text(text)
        return time.process_time() - started

    assert min(seconds(800_000) for _ in range(3)) < 25 * min(seconds(100_000) for _ in range(3)) + 0.05


def test_a_configured_key_is_known_as_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that Kubernetes or Docker mounts ends with a line break, which no request does."""
    monkeypatch.setenv("KEY_OF_THE_API", "my-upstream-key\n")
    found = configured_secrets(config(upstream_api_key_env="KEY_OF_THE_API"))
    assert Redactor(found).text("q_id=my-upstream-key&x=1") == "q_id=[redacted]&x=1"


def test_redaction_against_what_was_put_in() -> None:
    run_state_machine_as_test(Redaction, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))

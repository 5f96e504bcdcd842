"""Redaction: no secret of a value is shown, everything else is, and the value itself does not change."""

from __future__ import annotations

import copy
import json
import secrets
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from harness import Running, config, has, running, wait_for
from redaction_corpus import NEGATIVES, POSITIVES, filled
from weather_station.production import get_logger
from weather_station.production.config import about
from weather_station.production.observe.redaction import (
    KEY_PREFIXES,
    MAX_DEPTH,
    MAX_TEXT,
    REDACTED,
    WORDS,
    Redactor,
    configured_secrets,
    is_secret,
)
from weather_station.production.registry import LearnedSecrets, Registry
from weather_station.production.sdk import ProductionServer

log = get_logger("own.tool")

SEPARATORS = st.sampled_from(["", "-", "_", ".", " "])
SECRET_KEYS = st.builds(
    lambda before, word, after, upper: (before + word + after).upper() if upper else before + word + after,
    st.sampled_from(["", "x-", "my_", "Old"]),
    st.one_of(st.sampled_from(WORDS), st.builds("{}{}key".format, st.sampled_from(KEY_PREFIXES), SEPARATORS)),
    st.sampled_from(["", "_2", ".value"]),
    st.booleans(),
)
KINDS = st.sampled_from([dict, list])
PLAIN_KEYS = st.sampled_from(["city", "count", "monkey", "keyboard", "page", "Straße", "a b", ""])
CONFIGURED = ("hunter/hunter+1", "correct horse, 2")
AROUND = st.sampled_from(["{}", "before {} after", "x{}x", "https://host/{}/path", "['{}']"])


class Nested:
    """A container in the value, its depth, and whether it is somewhere below the key of a secret."""

    def __init__(self, content: Any, depth: int, *, secret: bool) -> None:
        self.content = content
        self.depth = depth
        self.secret = secret

    def put(self, key: str, value: object) -> str:
        """Add `value`, to a mapping under a key that is not taken yet; return that key, or nothing for a list."""
        if isinstance(self.content, list):
            self.content.append(value)
            return ""
        while key in self.content:
            key += "_"
        self.content[key] = value
        return key


class Redaction(RuleBasedStateMachine):
    """Builds a value step by step, and keeps which of its texts must be shown and which must not."""

    containers: Bundle[Nested] = Bundle("containers")

    @initialize(target=containers)
    def begin(self) -> Nested:
        self.root: dict[str, Any] = {}
        self.secrets = set(CONFIGURED)
        self.plain: set[str] = set()
        self.redactor = Redactor(CONFIGURED)
        return Nested(self.root, 1, secret=False)

    def new(self, container: Nested, *, secret: bool = False) -> str:
        """Return a unique text to be put into `container`."""
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
def test_a_json_web_token_is_found_wherever_it_begins(around: str) -> None:
    assert "c2lnbmF0dXJl" not in Redactor().text(around.format(SIGNED))


@pytest.mark.parametrize("piece", ["eyJ", "eyJaaaaaaaa.", "eyJ-eyj.", "eyJaaaaaaaa.aaaaaaaa"])
def test_a_long_text_that_resembles_json_web_tokens_is_redacted_to_its_end(piece: str) -> None:
    """A search that takes more than linear time would take minutes."""
    text = piece * (800_000 // len(piece))
    shown = Redactor().text(f"{text} token=hunter2")
    assert "hunter2" not in shown
    assert shown.endswith(f" token={REDACTED}")


def test_a_configured_key_is_recognized_without_the_line_break_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted file ends with a line break, which is not sent."""
    monkeypatch.setenv("KEY_OF_THE_API", "my-upstream-key\n")
    registry = Registry(config(upstream_api_key_env="KEY_OF_THE_API"), about())
    found = configured_secrets(registry)
    assert Redactor(found).text("q_id=my-upstream-key&x=1") == "q_id=[redacted]&x=1"


@pytest.mark.pure
def test_any_value_is_shown_without_its_secrets_and_with_everything_else() -> None:
    run_state_machine_as_test(Redaction, settings=settings(max_examples=60, stateful_step_count=30))


NAMES = ("authorization", "token", "password", "secret", "api key", "private_key", "cookie", "Credentials", "jwt")
CASES = st.sampled_from([str.lower, str.upper, str.title, str.swapcase])


@st.composite
def secret_keys(draw: st.DrawFn) -> str:
    """Return a key such as `X-Api-Key`, `db_PASSWORD` or `accessToken2`."""
    word = draw(st.sampled_from(NAMES)).replace(" ", draw(SEPARATORS)).replace("_", draw(SEPARATORS))
    prefix, suffix = draw(st.sampled_from(["", "x-", "db_", "user"])), draw(st.sampled_from(["", "2", "_hash", "-id"]))
    return prefix + draw(CASES)(word) + suffix


PLAIN = ("city", "user", "n", "keyboard", "author", "monkey", "cooking", "passport", "", "é")


class Leaf:
    """A place for a marked text."""


trees = st.recursive(
    st.builds(Leaf),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(secret_keys() | st.sampled_from(PLAIN), inner, max_size=4)
    ),
    max_leaves=30,
).filter(lambda tree: _depth(tree) <= 7)


def _depth(tree: Any) -> int:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@pytest.mark.pure
@given(trees)
def test_secrets_at_any_depth_are_redacted_and_nothing_else_is(tree: Any) -> None:
    secret: set[str] = set()
    plain: set[str] = set()

    def mark(node: Any, hidden: bool) -> Any:
        if isinstance(node, dict):
            return {key: mark(value, hidden or key not in PLAIN) for key, value in node.items()}
        if isinstance(node, list):
            return [mark(value, hidden) for value in node]
        found = secret if hidden else plain
        text = f"mark{len(secret) + len(plain)}end"
        found.add(text)
        return text

    marked = mark(tree, False)
    shown = json.dumps(Redactor().value({"tree": marked}))
    assert not {text for text in secret if text in shown}
    assert plain == {text for text in plain if text in shown}


@pytest.mark.parametrize(
    "key", ["Authorization", "X-API-Key", "apikey", "access.token", "Set-Cookie", "PASSWORD", "auth"]
)
def test_a_key_that_names_a_secret_is_recognized(key: str) -> None:
    assert is_secret(key)
    assert Redactor().value({key: {"nested": "hunter2"}}) == {key: REDACTED}


def test_a_value_that_is_no_secret_stays_in_spite_of_its_key() -> None:
    fields = {"tokens": 512, "password": None, "api_key": "", "use_token": True, "monkey": "a", "key": "cache:1"}
    assert Redactor().value(fields) == fields


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [redacted]"),
        ("sent {'authorization': 'Bearer hunter2'}", "sent {'authorization': [redacted]}"),
        ("[(b'cookie', b'a=hunter2'), (b'accept', b'*')]", "[(b'cookie', [redacted]), (b'accept', b'*')]"),
        ("Login(user='bob', password='hunter2')", "Login(user='bob', password=[redacted])"),
        ("https://user:hunter2@example.com/x?y=1", "https://[redacted]@example.com/x?y=1"),
        ("/v1?appid=hunter2&q=Bern", "/v1?appid=[redacted]&q=Bern"),
        ("/v1?q=Bern&key=hunter2#top", "/v1?q=Bern&key=[redacted]#top"),
        ("X-Api-Key=hunter2; next", "X-Api-Key=[redacted]; next"),
        ("got bearer abcdefgh12345678", "got bearer [redacted]"),
        ("İ token=hunter2", "İ token=[redacted]"),
        ("configured-secret is in here", "[redacted] is in here"),
        ("Bearer authentication required: no token", "Bearer authentication required: no token"),
        ("KeyError: 'city', monkey = 3", "KeyError: 'city', monkey = 3"),
    ],
)
def test_secrets_in_a_text_are_redacted(text: str, shown: str) -> None:
    assert Redactor(["configured-secret", "short"]).text(text) == shown


def test_a_configured_secret_is_found_in_its_url_encoded_form() -> None:
    assert Redactor(["sign&d=key/1"]).text("GET /x?part=sign%26d%3Dkey%2F1&b") == f"GET /x?part={REDACTED}&b"


RECALL, PRECISION = 0.93, 0.99
"""The published score."""

REDACTOR = Redactor()


def is_hidden(text: str) -> bool:
    before, rest = filled(text).split("«")
    secret, after = rest.split("»")
    shown = REDACTOR.text(before + secret + after)
    return secret not in shown and (len(secret) < 6 or secret[-6:] not in shown)


@pytest.mark.pure
def test_the_score_is_not_worse_than_the_published_one() -> None:
    positives = [text for texts in POSITIVES.values() for text in texts]
    assert (len(POSITIVES) >= 40, len(positives) >= 150, len(NEGATIVES) >= 100) == (True, True, True)
    hidden = sum(map(is_hidden, positives))
    wrongly = sum(REDACTOR.text(filled(text)) != filled(text) for text in NEGATIVES)
    assert hidden / len(positives) >= RECALL
    assert hidden / (hidden + wrongly) >= PRECISION


TOKENS = [secrets.token_urlsafe(32) for _ in range(500)]


@pytest.mark.pure
@given(st.text(), st.sampled_from(TOKENS), st.text())
def test_a_learned_secret_is_hidden_wherever_it_is(before: str, token: str, after: str) -> None:
    learned = LearnedSecrets()
    redactor = Redactor((), learned)
    learned.add(*TOKENS)
    assert token not in redactor.text(before + token + after)
    assert token not in str(redactor.value({before + token + after: [before + token]}))


TOKEN, KEY = "Aq3_" + "x7Zk" * 8, "up/str+eam=" + "k9Lm" * 6
ENDS = (" ", "=", ":", '"', "'", "\\", "/", "%", "&", "token=", '{"a": "', "https://u:", "@host/", "\n", "\x1b[1m", "é")
around = st.lists(st.one_of(st.sampled_from(ENDS), st.text(st.characters(codec="utf-8"), max_size=4)), max_size=4)


@pytest.fixture(scope="module")
def telling() -> Iterator[Running]:
    """A server whose tools show a text: in the log, in its fields, and in errors."""

    def register(server: ProductionServer) -> None:
        async def note(text: str) -> None:
            log.warning(text)

        async def field(text: str) -> None:
            log.warning("a field", value=[{"deep": text}], **{f"key {text}": 1})

        async def crash(text: str) -> None:
            raise ValueError(text)

        async def chain(text: str) -> None:
            try:
                raise KeyError(text)
            except KeyError as error:
                raise RuntimeError("other") from error

        for tool in (note, field, crash, chain):
            server.tool()(tool)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UPSTREAM_KEY", KEY)
        tokens: dict[str, Any] = {"auth_tokens": f"alice:{TOKEN}"} if has("inbound.auth_token") else {}
        with running(config(upstream_api_key_env="UPSTREAM_KEY", log_arguments=True, **tokens), register) as server:
            yield server


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tool=st.sampled_from(["note", "field", "crash", "chain"]),
    secret=st.sampled_from([KEY, TOKEN] if has("inbound.auth_token") else [KEY]),
    before=around,
    after=around,
)
def test_a_running_server_shows_no_secret_whatever_is_around_it(
    telling: Running, capfd: Any, tool: str, secret: str, before: list[str], after: list[str]
) -> None:
    text = "".join(before) + secret + "".join(after)
    result = telling.call(tool, {"text": text}, authorization=f"Bearer {TOKEN}")
    written = ""

    def is_logged() -> bool:
        nonlocal written
        written += capfd.readouterr().err
        return '"outcome"' in written

    wait_for(is_logged)
    assert secret not in json.dumps(result)
    assert secret not in written


@pytest.mark.pure
@given(st.integers(0, 80))
def test_no_part_of_a_secret_is_shown_at_a_cut(position: int) -> None:
    token = TOKENS[0]
    text = "." * (2 * MAX_TEXT - position) + token + "." * MAX_TEXT
    assert token[:8] not in Redactor(TOKENS).beginning(text, 2 * MAX_TEXT)
    assert token[-8:] not in Redactor(TOKENS).end(text, MAX_TEXT + position)

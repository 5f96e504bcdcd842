"""Example texts for regular expressions."""

from __future__ import annotations

import pydantic_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_tools.pattern_examples import MAX_TEXT, matching_texts


def matches(pattern: str, text: str) -> bool:
    try:
        validator = pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=pattern))
        validator.validate_python(text)
    except pydantic_core.ValidationError:
        return False
    return True


def is_supported_pattern(pattern: str) -> bool:
    try:
        pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=pattern))
    except pydantic_core.SchemaError:
        return False
    return True


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]{2,8}-[0-9]+$",
        r"^[A-Z]{2}\d{3}(-x)?$",
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        r"^v\d+(\.\d+){1,2}$",
        r"^(?:GET|PUT)\s/[^/\s]+$",
        r"^(?P<year>\d{4})-(?<month>\d\d)$",
        r"^(?i:abc)\.(?-i)x(?i)y$",
        r"^[^a]$",
        r"^[^a-zA-Z0-9]$",
        r"^[^\s]$",
        r"^[]x]\]$",
        r"^[-a][a-][\w-]$",
        r"^[\-\[\]\\]+$",
        r"^\x41\u0042\u{43}\x{44}\t\.$",
        r"^\w\W\d\D\s\S$",
        r"^a*?b+?c??$",
        r"^a{3}{2}$",
        r"^a{2,}?$",
        r"^.{32}$",
        r"\Aab\b\z",
        r"",
        r"^(|a)$",
        r"^(a(b(c|d)|e)|f){2}$",
    ],
)
def test_one_of_the_texts_matches(pattern: str) -> None:
    texts = matching_texts(pattern)
    assert any(matches(pattern, text) for text in texts), texts


def test_braces_that_are_no_quantifier_are_text() -> None:
    assert matching_texts("a{}{,}")[0] == "a{}{,}"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?=a)b",
        r"(?!a)b",
        r"(?<=a)b",
        r"(a)\1",
        r"\p{L}",
        r"[[:alpha:]]",
        "(",
        ")",
        "[",
        "[b-a]",
        "*a",
        "\\",
        r"\x4",
        "(?x)a",
    ],
)
def test_unsupported_syntax_gives_no_text(pattern: str) -> None:
    assert matching_texts(pattern) == []


def test_the_minimum_length_is_tried_as_a_number_of_repetitions() -> None:
    assert "a" * 17 in matching_texts("^a*$", 17)


def test_nested_repetitions_give_no_text_of_any_length() -> None:
    assert max(map(len, matching_texts("(" * 8 + "a" + "*)" * 8 + "+"))) <= MAX_TEXT


PARTS = st.sampled_from([*"ab-.", r"\d", r"\w", r"\s", r"\.", "[a-z]", "[^a]", r"[\d.]", "[A-F0-9]", "^", "$", "é"])
PATTERNS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map("|".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PATTERNS)
def test_every_pattern_of_supported_syntax_gives_texts(pattern: str) -> None:
    """The texts of a pattern without anchors match it; an anchor in its middle may contradict what is around it."""
    texts = matching_texts(pattern)
    assert texts
    if is_supported_pattern(pattern) and not set(pattern.replace("[^", "")) & set("^$"):
        assert all(matches(f"^(?:{pattern})$", text) for text in texts), texts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(alphabet="ab\\[](){}?*+|^$.-,dwx1:<>P=!é\n", max_size=12))
def test_any_text_is_read_as_a_pattern_without_an_error(pattern: str) -> None:
    assert all(len(text) <= MAX_TEXT for text in matching_texts(pattern))

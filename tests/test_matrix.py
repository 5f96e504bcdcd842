"""The matrices of answers cover every pair and combination, and each of their projects is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from .combinations import check_all, combinations
from .matrix import (
    MATRICES,
    OUTBOUND,
    all_questions,
    allowed,
    check_projects,
    complete,
    outbound,
    outbound_pairs,
    structure,
    values_of,
)
from .owner_projects import ORIGINS
from .support import DEFAULT, EVERYTHING, MINIMAL, NEEDS, Answers, evaluate, questions, render_text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cover", "names"),
    [(structure, None), pytest.param(all_questions, None, marks=pytest.mark.release), (outbound_pairs, OUTBOUND)],
    ids=["structure", "all questions", "outbound"],
)
def test_a_cover_has_every_pair_of_answers(
    cover: Callable[[], dict[str, Answers]], names: Sequence[str] | None
) -> None:
    rows = [*cover().values()]
    names = names or list(rows[0].keys() - {"project_name"})
    rows += [complete(data, names) for data in (DEFAULT, MINIMAL, EVERYTHING)]
    covered = {(one, row[one], other, row[other]) for row in rows for one, other in itertools.permutations(names, 2)}
    wanted = {
        (one, a, other, b)
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(values_of(one), values_of(other))
        if allowed({one: a, other: b})
    }
    assert wanted - covered == set()


def test_the_validators_reject_the_pairs_that_a_cover_leaves_out() -> None:
    names = [name for name in questions() if name not in ("project_name", "project_slug", "package_name")]
    pairs = (
        {one: a, other: b}
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(values_of(one), values_of(other))
    )
    left_out = [pair for pair in pairs if not allowed(pair)]
    assert len(left_out) == len(NEEDS)
    for pair in left_out:
        values = evaluate(DEFAULT | pair)
        rejections = [render_text(questions()[name].get("validator", ""), values) for name in pair]
        assert any(rejections), pair


def test_the_outbound_features_come_in_every_combination() -> None:
    switched = {tuple(data[name] for name in OUTBOUND) for data in outbound().values()}
    assert switched == set(itertools.product((True, False), repeat=5))
    assert len(outbound()) == 32


# --- The release set -----------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize(
    ("matrix", "origin"),
    [*((name, None) for name in MATRICES if name != "kinds"), *(("kinds", each) for each in ORIGINS)],
)
def test_every_project_of_a_matrix_passes_its_checks(
    matrix: str, origin: str | None, figure: Callable[[str], None]
) -> None:
    results = [*check_projects(MATRICES[matrix](), origin)]
    assert results
    assert [f"{name}: {result}" for name, result, right in results if not right] == []
    figure(f"projects of the matrix {matrix}{f' from {origin}' if origin else ''}: {len(results)}")


@pytest.mark.release
def test_every_combination_of_answers_passes_its_checks(figure: Callable[[str], None]) -> None:
    results = [*check_all([*combinations()])]
    assert [problem for result in results for problem in result.problems] == []
    figure(f"combinations rendered and linted: {sum(result.projects for result in results)}")

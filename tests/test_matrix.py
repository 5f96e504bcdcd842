"""The sets of answers that are built as projects cover what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from copier import run_copy

from .matrix import OUTBOUND, _complete, _values, all_questions, allowed, outbound, outbound_pairs, structure
from .support import DEFAULT, EVERYTHING, MINIMAL, NEEDS, Answers, answers


@pytest.mark.parametrize(
    ("cover", "of"),
    [(structure, None), (all_questions, None), (outbound_pairs, OUTBOUND)],
    ids=["structure", "all questions", "outbound"],
)
def test_every_two_answers_meet_in_a_project(cover: Callable[[], dict[str, Answers]], of: Sequence[str] | None) -> None:
    found = [*cover().values()]
    names = of or list(found[0].keys() - {"project_name"})
    rows = [*found, *(_complete(data, dict.fromkeys(names, ())) for data in (DEFAULT, MINIMAL, EVERYTHING))]
    met = {(one, row[one], other, row[other]) for row in rows for one, other in itertools.permutations(names, 2)}
    wanted = {
        (one, a, other, b)
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(_values(one), _values(other))
        if allowed({one: a, other: b})
    }
    assert wanted - met == set()


@pytest.mark.slow
@pytest.mark.parametrize("cover", [structure, all_questions, outbound_pairs])
@pytest.mark.usefixtures("quickly")
def test_every_project_of_a_cover_can_be_made(
    cover: Callable[[], dict[str, Answers]], template: Path, tmp_path: Path
) -> None:
    for name, data in cover().items():
        run_copy(str(template), tmp_path / name, data=data, defaults=True, skip_tasks=True, quiet=True)


@pytest.mark.usefixtures("quickly")
def test_what_a_cover_leaves_out_is_refused(words: Path, tmp_path: Path) -> None:
    names = sorted(next(iter(all_questions().values())).keys() - {"project_name"})
    pairs = (
        {one: a, other: b}
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(_values(one), _values(other))
    )
    left_out = [pair for pair in pairs if not allowed(pair)]
    assert len(left_out) == len(NEEDS)
    for pair in left_out:
        with pytest.raises(ValueError, match="Validation error for question"):
            run_copy(str(words), tmp_path, data=answers(**(DEFAULT | pair)), defaults=True, skip_tasks=True, quiet=True)


def test_the_outbound_features_come_in_every_combination() -> None:
    found = {tuple(data[name] for name in OUTBOUND) for data in outbound().values()}
    assert found == set(itertools.product((True, False), repeat=5))
    assert len(outbound()) == 32

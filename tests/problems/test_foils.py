"""Wrong answers to show: of the same form, near in length, never another spelling of the right one."""

from __future__ import annotations

import pytest

from covrl.errors import UserError
from covrl.problems.foils import foils as all_foils
from covrl.problems.foils import with_foils
from covrl.records import Problem


def problems(*answers: str) -> list[Problem]:
    return [Problem(f"p{i}", "q?", answer) for i, answer in enumerate(answers)]


def foils(*answers: str) -> list[str | None]:
    return [p.foil for p in with_foils(problems(*answers), seed=0)]


def test_a_foil_is_of_the_same_form_and_then_of_the_nearest_length() -> None:
    assert foils("7", "12345", "42", "red", "white") == ["42", "42", "7", "white", "red"]


def test_another_spelling_of_the_answer_is_no_foil() -> None:
    assert foils("1000", "1,000", "1000.0", "2000") == ["2000", "2000", "2000", "1000"]


def test_an_accepted_answer_is_no_foil() -> None:
    given = [Problem("a", "q?", "red", accepted=("blue",)), *problems("blue", "green")]
    assert with_foils(given, seed=0)[0].foil == "green"


def test_where_no_answer_is_of_the_form_another_one_serves() -> None:
    assert foils("7", "red") == ["red", "7"]


def test_a_foil_that_is_given_stays_and_the_seed_decides_among_equals() -> None:
    given = [Problem("a", "q?", "11", foil="99"), *problems(*map(str, range(12, 40)))]
    first, second = (with_foils(given, seed) for seed in (0, 1))
    assert first[0].foil == "99"
    assert first == with_foils(given, 0)
    assert [p.foil for p in first] != [p.foil for p in second]
    assert len({p.foil for p in first}) > 10


def test_without_another_answer_there_is_none_and_the_problem_is_named() -> None:
    with pytest.raises(UserError, match=r"problem p0: no other problem has another answer"):
        with_foils(problems("7", "7.0"), seed=0)


def test_the_hint_and_accepted_answers_are_no_foils_and_where_none_is_left_there_is_none() -> None:
    given = [Problem("a", "?", "1/2", accepted=("3",)), Problem("b", "?", "0.5"), Problem("c", "?", "3")]
    assert all_foils([*given, Problem("d", "?", "250")])[0] == "250"
    assert all_foils(given[:2]) == [None, None]
    shown = [Problem("f", "?", "7", hint="8"), Problem("g", "?", "8"), Problem("h", "?", "99")]
    assert all_foils(shown)[0] == "99"  # though the hint is nearer in length

"""math-verify in a process of its own that can be killed (:mod:`covrl.rewards.workers`).

``python -m covrl.rewards.math_worker`` is the worker. Only it imports math-verify. A question is
``[[reference, ...], answer]``, both LaTeX.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, NamedTuple

from covrl.rewards.workers import Judge, Reply, Workers, serve

RELATIVE_TOLERANCE = 1e-5
"""Largest relative difference of two decimals: math-verify's own six places would make 1e-7 equal to 0."""

DIFFERENCE = 1e-4
"""Relative difference at a point that no rounding explains."""

CANCELLED = 1e-9
"""Size of a number, relative to its terms, below which it may be only rounding."""

NOISE = 1e-12
"""Relative difference of two equal numbers due to arithmetic with decimals of 15 digits."""

DIGITS = 60
EXACT = 1e-40
"""Relative difference, with DIGITS digits, within which exact numbers count as equal."""

ORDINARY = 1e15
"""Size up to which, and down to one over it, numbers are so near to one another that EXACT tells them apart."""


class Question(NamedTuple):
    """A question to a worker: is this LaTeX equal to one of the references?"""

    references: tuple[str, ...]
    answer: str


def math_workers(count: int, limit_s: float) -> Workers:
    """Workers that answer :class:`Question` with math-verify."""
    return Workers(count, limit_s, "covrl.rewards.math_worker", what="math")


# What follows runs in the worker.


def _judge_with_math_verify() -> Any:
    """Set math-verify up; the function (references, answer) -> reply."""
    import logging

    import sympy  # noqa: F401  # now, and not in the time of the first row
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, grader, parse, verify

    logging.disable(logging.CRITICAL)
    # Units are off: theirs remove a final t, m or d from formulas. Our normalising has removed units before.
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=reading)]
    failures = _record_failures(grader)
    _compare_exactly(grader)

    @lru_cache(maxsize=4096)
    def read(latex: str) -> Any:
        # One box around the whole text and only the first match: the text is parsed as a whole or not at all.
        found = parse(
            f"\\boxed{{{latex}}}",
            config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=0,  # none: the alarm in their parser cannot interrupt a long call into C, ours can
            raise_on_error=True,
        )
        return found[0] if found else None

    def same(reference: Any, answer: Any) -> bool:
        reference, answer = _one_kind(reference, answer)
        return not _differ(reference, answer) and verify(
            [reference], [answer], allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True
        )

    def judge(question: Any) -> Reply:
        references, answer = question
        doubts: list[str] = []
        said = _attempt(lambda: read(answer), "answer not mathematics", doubts)
        for reference in references if not doubts else ():
            expected = _attempt(lambda r=reference: read(r), "reference not mathematics", doubts)
            if expected is None:
                continue
            failures.clear()
            equal = _attempt(lambda e=expected: same(e, said), "comparison failed", doubts)
            if equal:
                return Reply("right", "equal as mathematics")
            if failures:
                doubts.append(f"comparison failed: {failures[0]}")
        return Reply("unknown", doubts[0]) if doubts else Reply("wrong", "not equal as mathematics")

    return judge


def _attempt(action: Any, doing: str, doubts: list[str]) -> Any:
    """The result of ``action``; None, with a noted doubt, if it fails or returns None."""
    try:
        value = action()
    except Exception as error:  # sympy raises any kind of error, including RecursionError and MemoryError
        doubts.append(f"{doing}: {type(error).__name__}")
        return None
    if value is None:
        doubts.append(f"{doing}: math-verify cannot read it")
    return value


def _record_failures(grader: Any) -> list[str]:
    """math-verify takes a simplification that fails for "not equal"; the list gets the failures' names instead."""
    failures: list[str] = []
    simplify = grader.simplify

    def recording(*args: Any, **settings: Any) -> Any:
        try:
            return simplify(*args, **settings)
        except (RecursionError, MemoryError, ArithmeticError, NotImplementedError) as error:
            failures.append(type(error).__name__)
            raise

    grader.simplify = recording
    return failures


def _one_kind(reference: Any, answer: Any) -> tuple[Any, Any]:
    """Both sides with the imaginary unit for the letter i, and with symbols of one kind.

    math-verify reads ``i`` as a symbol, and all symbols of a text as real or not real by what surrounds that letter:
    those of ``3+2i`` are real, those of ``3+2 i`` are not, and no two of different kinds are equal. Without an ``i``
    symbols are real, beside one they are anything.
    """
    from sympy import I, Interval, Symbol, Tuple

    def symbols(side: Any) -> list[Any]:
        return [s for s in getattr(side, "free_symbols", ()) if type(s) is Symbol]

    is_complex = any(s.name == "i" for side in (reference, answer) for s in symbols(side))

    def renamed(side: Any) -> Any:
        new = {s: I if s.name == "i" else Symbol(s.name, real=None if is_complex else True) for s in symbols(side)}
        changed = {old: to for old, to in new.items() if old != to}
        if (
            is_complex and isinstance(side, Interval) and side.left_open and side.right_open
        ):  # (2i, 3) is read as one, and is a point
            side = Tuple(side.start, side.end)
        return side.subs(changed, simultaneous=True) if changed else side

    return renamed(reference), renamed(answer)


def _differ(reference: Any, answer: Any) -> bool:
    """Whether two formulas have clearly different values at one point: then they are not equal, and nothing need be
    simplified to find out, which takes long. False if that is not known.
    """
    from sympy import Expr, Integral, Limit, Product, Sum, Symbol, UnevaluatedExpr
    from sympy.core.function import AppliedUndef

    for side in (reference, answer):
        if not isinstance(side, Expr) or isinstance(side, Symbol):
            return False
        if side.has(Integral, Limit, Product, Sum, AppliedUndef, UnevaluatedExpr):
            return False
    symbols = sorted(reference.free_symbols | answer.free_symbols, key=str)
    point = {s: 0.7 + 0.37 * i for i, s in enumerate(symbols)}
    sides = reference.subs(point), answer.subs(point)
    apart = _apart(*sides, digits=15)
    return apart is not None and bool(apart > DIFFERENCE) and not all(map(_may_be_zero, sides))


def _may_be_zero(side: Any) -> bool:
    """Whether a number is so much smaller than its terms that it may be only rounding."""
    value = _value(side, 15)
    return value is not None and bool(abs(value) < CANCELLED * max([1, *_sizes(side)]))


def _sizes(side: Any) -> list[Any]:
    """The sizes of all terms of a number, without zeros."""
    from sympy import preorder_traversal

    values = (_value(node, 15) for node in preorder_traversal(side) if getattr(node, "is_number", False))
    return [abs(v) for v in values if v is not None and v != 0]


def _compare_exactly(grader: Any) -> None:
    """Let math-verify compare numbers by their relative difference, alone and inside tuples, sets and matrices.

    It rounds to six places, or drops what is small, so that for it all numbers below the smallest float are equal.
    """
    loosely = grader.sympy_numeric_eq

    def exactly(a: Any, b: Any, *precision: Any) -> bool:
        from sympy import Expr, Float

        if not (isinstance(a, Expr) and isinstance(b, Expr)):  # the entries of matrices are compared here too
            return loosely(a, b, *precision)
        decimal = a.has(Float) or b.has(Float)
        if a.is_number and b.is_number:
            return _near(a, b, loosely(a, b, *precision)) if decimal else _equal(a, b)
        return loosely(a, b, *precision) and _equal_terms(a, b, RELATIVE_TOLERANCE if decimal else EXACT)

    grader.sympy_numeric_eq = exactly


def _value(side: Any, digits: int = DIGITS) -> Any:
    """A number's value, however large or small; None if it has none."""
    try:
        value = side.evalf(digits)
    except (TypeError, ValueError, ArithmeticError, NotImplementedError):
        return None
    return value if value.is_number and value.is_finite else None


def _apart(a: Any, b: Any, digits: int = DIGITS) -> Any:
    """The difference of two numbers relative to the larger one; None where they have no values."""
    one, other = _value(a, digits), _value(b, digits)
    if one is None or other is None:
        return None
    if one == other:
        return 0
    return (abs(one - other) / max(abs(one), abs(other))).evalf(digits)


def _near(a: Any, b: Any, to_six_places: bool) -> bool:
    """Whether two numbers of which one is a decimal are the same: to six places, or up to noise."""
    apart = _apart(a, b)
    return apart is not None and bool(apart <= (RELATIVE_TOLERANCE if to_six_places else NOISE))


def _equal(a: Any, b: Any) -> bool:
    """Whether two exact numbers agree to so many digits that they count as equal; if false, a proof has to decide.

    Only for numbers with terms of ordinary size: 1 + exp(-1000) and 1 agree to hundreds of digits.
    """
    apart = _apart(a, b)
    if apart is None or not apart <= EXACT:
        return False
    return all(1 / ORDINARY < size < ORDINARY for size in (*_sizes(a), *_sizes(b)))


def _equal_terms(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two formulas have the same terms, with the same coefficients; if false, a proof has to decide."""
    from sympy import expand

    one, other = (expand(side.doit()).evalf(DIGITS).as_coefficients_dict() for side in (a, b))
    found = [(c, other[term]) for term, c in one.items()]
    return one.keys() == other.keys() and all((d := _apart(*pair)) is not None and d <= tolerance for pair in found)


def _load() -> Judge:
    try:
        return _judge_with_math_verify()
    except Exception as error:
        raise ImportError(f"{error}; math-verify 0.9 is needed: pip install 'math-verify>=0.9,<0.10'") from error


if __name__ == "__main__":
    serve(_load, float(sys.argv[1]))

"""math-verify in a process of its own that can be killed (:mod:`covrl.rewards.workers`).

``python -m covrl.rewards.math_worker`` is the far end. It alone imports math-verify. A question is
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


class Question(NamedTuple):
    """What a worker is asked: is this LaTeX equal to one of the references?"""

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
    # Units are off: theirs cut a final t, m or d off formulas. Our text side has split units off already.
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=reading)]
    failures = _record_failures(grader)

    @lru_cache(maxsize=4096)
    def read(latex: str) -> Any:
        # One box around the whole text and only the first match: it is read as a whole or not at all, never searched.
        found = parse(
            f"\\boxed{{{latex}}}",
            config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=0,  # none: the alarm in their parser cannot end what holds Python up, ours can
            raise_on_error=True,
        )
        return found[0] if found else None

    def same(reference: Any, answer: Any) -> bool:
        return (
            not _differ(reference, answer)
            and verify([reference], [answer], allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True)
            and _close_enough(reference, answer)
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
    """What ``action`` returns; None, and a doubt noted, if it fails or returns None."""
    try:
        value = action()
    except Exception as error:  # sympy raises anything at all; RecursionError and MemoryError among it
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


def _differ(reference: Any, answer: Any) -> bool:
    """Whether two formulas have clearly different values at one point: then they are not equal, and nothing need be
    simplified to find out, which is what takes long. False where that cannot be told.
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
    try:
        a, b = complex(reference.subs(point)), complex(answer.subs(point))
    except (TypeError, ValueError, ArithmeticError):
        return False
    return abs(a - b) > DIFFERENCE * max(abs(a), abs(b))


def _close_enough(reference: Any, answer: Any) -> bool:
    """Whether two numbers of which one is a decimal agree relative to their size; True for all other pairs."""
    from sympy import Float

    if not (getattr(reference, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    if not (reference.has(Float) or answer.has(Float)):
        return True
    try:
        a, b = complex(reference), complex(answer)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def _load() -> Judge:
    try:
        return _judge_with_math_verify()
    except Exception as error:
        raise ImportError(f"{error}; math-verify 0.9 is needed: pip install 'math-verify>=0.9,<0.10'") from error


if __name__ == "__main__":
    serve(_load, float(sys.argv[1]))

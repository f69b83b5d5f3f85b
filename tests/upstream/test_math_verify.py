"""What math-verify 0.9 and its parser misread, in few lines each, so that we hear when it is mended.

Every test asserts what is right and is expected to fail. Once the library is mended it passes, which pytest reports as
a failure with the workaround that can go then.
"""

from __future__ import annotations

import pytest
from math_verify import LatexExtractionConfig, parse, verify

KIND = "math_worker._one_kind: letters and the imaginary unit are alike in both answers"
EXACT = "math_worker._compare_exactly: numbers are compared by their relative difference"
UNITS = "units.read_unit: units are split off and compared before math-verify sees the answer"
SPELLING = "normalise: spelled in another way before math-verify sees it"
RANGES = "ranges.as_set: inequalities become sets before math-verify sees them"


def same(reference: str, answer: str) -> bool:
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    one, other = (parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback") for text in (reference, answer))
    assert one
    assert other
    return verify(one, other)


def mended_means(workaround: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=f"math-verify is mended here, so this can go: {workaround}")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        pytest.param("3+2i", "3+2 i", marks=mended_means(KIND), id="case12-spaces"),
        pytest.param("(1+i)^2", "2i", marks=mended_means(KIND), id="case12-square"),
        pytest.param(r"\frac{3}{5}+\frac{4}{5}i", "0.6+0.8i", marks=mended_means(KIND), id="case12-decimals"),
        pytest.param(r"6.02\times10^{23}", "6.02e23", marks=mended_means(SPELLING), id="case14-exponent"),
        pytest.param(r"\emptyset", r"\varnothing", marks=mended_means(SPELLING), id="case14-empty"),
        pytest.param("e^2", r"\mathrm{e}^2", marks=mended_means(SPELLING), id="case14-e"),
        pytest.param(r"\frac12", r"\sin 30^\circ", marks=mended_means(SPELLING), id="case14-degrees"),
        pytest.param(r"12\text{ m}^2", "12 m^2", marks=mended_means(UNITS), id="case14-square-meters"),
        pytest.param(r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3", marks=mended_means(RANGES), id="case14-or"),
    ],
)
def test_equal_answers(reference: str, answer: str) -> None:
    assert same(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        pytest.param("10^{-400}", "10^{-500}", marks=mended_means(EXACT), id="case13-powers"),
        pytest.param(r"\frac{1}{2004!}", r"\frac{1}{2006!}", marks=mended_means(EXACT), id="case13-factorials"),
        pytest.param("(0.0000001,2)", "(0.00000001,2)", marks=mended_means(EXACT), id="case13-places"),
        pytest.param(r"5\text{ m}", r"5\text{ kg}", marks=mended_means(UNITS), id="case14-other-unit"),
    ],
)
def test_unequal_answers(reference: str, answer: str) -> None:
    assert not same(reference, answer)

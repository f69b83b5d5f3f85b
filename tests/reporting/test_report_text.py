import math

import pytest

from covrl.reporting.format import duration, number
from covrl.reporting.text import one_line, visible, warning_key


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é 数 👩\u200d💻", "plain\n\ttext é 数 👩\u200d💻"),
        ("\x00\x1b[31m\r\x7f\x9b", "<U+0000><U+001B>[31m<U+000D><U+007F><U+009B>"),
        ("\ud800", "<U+D800>"),
        ("a\u202eb\u2028c\ufeff", "a<U+202E>b<U+2028>c<U+FEFF>"),
        ("\uffff\ufdd0\U0001fffe", "<U+FFFF><U+FDD0><U+1FFFE>"),
    ],
)
def test_hidden_characters_are_named_and_the_others_stay(text, shown):
    assert visible(text) == shown
    visible(text).encode("utf-8")


def test_one_line_cuts_to_the_limit():
    assert one_line("a  b\n c") == "a b c"
    assert one_line("abcdefgh", 4) == "abc…"


def test_warnings_are_alike_without_their_numbers():
    assert warning_key("KL 3.4 at step 12") == warning_key("KL -1.2e-05 at step 7")
    assert warning_key("KL 3.4") != warning_key("reward 3.4")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "", "–"),
        (math.nan, "share", "NaN"),
        (-math.inf, "nats", "-∞"),
        (0.2384, "share", "23.8\u00a0%"),
        (9.999, "", "10.0"),
        (-0.0123, "", "-0.012"),
        (1234.4, "", "1,234"),
        (3e-5, "", "3.0e-05"),
        (0.0, "", "0"),
    ],
)
def test_numbers_have_about_three_digits(value, unit, shown):
    assert number(value, unit) == shown


def test_durations():
    assert [duration(s) for s in (0.4, 59.6, 192, 7500, math.nan)] == ["0s", "1m00s", "3m12s", "2h05m", "–"]

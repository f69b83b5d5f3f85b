"""Every verifier by its name: ours, an installed entry point, or ``module:function`` if a person typed it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from covrl.rewards.choice import choice
from covrl.rewards.code_tests import CodeVerifier
from covrl.rewards.countdown import countdown
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.judgement import Verifier
from covrl.rewards.names import Named, parse_name
from covrl.rewards.numeric import Numeric
from covrl.rewards.outside import GymVerifier, UserVerifier
from covrl.rewards.verifiers import MathVerifier, exact_text, normalised_text

_Maker = Callable[[Named, Sequence[str]], Verifier]

_MAKERS: Mapping[str, _Maker] = {
    "exact": lambda _, order: partial(exact_text, order=order),
    "text": lambda _, order: partial(normalised_text, order=order),
    "math": lambda n, order: MathVerifier(order, n.values["seconds"]),
    "numeric": lambda n, order: Numeric(n.values["relative"], n.values["absolute"], bool(n.set_values), order),
    "choice": lambda _, order: partial(choice, order=order),
    "countdown": lambda _, order: partial(countdown, order=order),
    "code": lambda n, _: CodeVerifier(n.values["seconds"], n.values["memory_mb"], bool(n.values["allow_unisolated"])),
    "reasoning-gym": lambda n, order: GymVerifier(n.values["seconds"], order),
}


def make_verifier(
    name: str, order: Sequence[str] = DEFAULT_ORDER, *, time_limit_s: float | None = None, code: bool = False
) -> Verifier:
    """The verifier of that name, with the parameters that follow it; a verifier with processes has ``close``.

    ``time_limit_s`` replaces the default of ``seconds``; ``code`` allows ``module:function``.

    Raises:
        UserError: there is no verifier, parameter or extractor of that name, a user's one cannot be imported, or
            programs cannot be isolated.
    """
    extract_answer("", order)
    named = parse_name(name, code=code)
    if time_limit_s is not None and "seconds" in named.values and "seconds" not in named.set_values:
        named = named._replace(values={**named.values, "seconds": time_limit_s})
    maker = _MAKERS.get(named.base)
    return maker(named, order) if maker else UserVerifier(named.base, named.values["seconds"])


@contextmanager
def open_verifier(
    name: str, order: Sequence[str] = DEFAULT_ORDER, time_limit_s: float | None = None, code: bool = False
) -> Generator[Verifier]:
    """:func:`make_verifier`, and its processes end with the context.

    Raises:
        UserError: as there.
    """
    verifier = make_verifier(name, order, time_limit_s=time_limit_s, code=code)
    try:
        yield verifier
    finally:
        close = getattr(verifier, "close", None)
        if close is not None:
            close()

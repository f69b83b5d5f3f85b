"""What every section of the settings is, and the types of values that several share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from covrl.errors import UserError
from covrl.rewards.names import parse_name


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    absent: ClassVar[Mapping[str, str]] = {}
    """Settings that one may look for here, and why there are none: said where they are given."""

    def refuse_idle(self, name: str, idle: bool, because: str) -> None:
        """Raise ValueError for the setting ``name`` if it was given and, as ``idle`` says, would do nothing."""
        if idle and name in self.model_fields_set:
            raise ValueError(f"{name} does nothing with {because}; leave it out, or change that")


def known_verifier(name: str) -> str:
    """The name of a verifier as it was given; ValueError where it names none."""
    if name != "none":
        try:
            parse_name(name)
        except UserError as error:
            raise ValueError(str(error)) from None
    return name


def _no_controls(name: str) -> str:
    if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        raise ValueError("a name must not hold control characters")
    return name


Name = Annotated[str, AfterValidator(_no_controls)]
"""A path, or what stands in the place of one."""


def _count_or_auto(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return TypeAdapter(PositiveInt).validate_python(str(value) if isinstance(value, bool) else value)
    except ValidationError:
        raise ValueError('should be an integer of at least 1, or "auto"') from None


CountOrAuto = Annotated[
    int | Literal["auto"], PlainValidator(_count_or_auto, json_schema_input_type=PositiveInt | Literal["auto"])
]
"""A portion of work: a number, or what fits the machine (:mod:`covrl.training.fit`)."""

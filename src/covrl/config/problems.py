"""Where problems come from: one source, or several with weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from covrl.config.base import Name, Settings
from covrl.problems.loading import Fields


class SourceConfig(Settings):
    """A source with names of fields of its own: a table ``[[problems.train]]``, of which there may be several,
    ``[problems.held_out]`` or ``[problems.test]`` (docs/own-data.md).

    Names of fields that are left out are those of ``[problems]``.
    """

    source: Name = Field(description="a file, a data set by name or a split, as problems.train names one")
    weight: float = Field(
        1.0, gt=0, description="of a source of problems.train: its share of a step's problems, over the sum of weights"
    )
    name: str = Field("", description="what figures and ids call it; empty: the file's or data set's own name")
    question_field: str | None = None
    answer_field: str | None = None
    system_field: str | None = None
    accepted_field: str | None = None
    id_field: str | None = None
    solution_field: str | None = None
    extract: Literal["none", "hash", "boxed"] | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value and not re.fullmatch(r"[\w.-]+", value):
            raise ValueError("a name has letters, digits, _, . and - alone")
        return value

    def fields_of(self, problems: ProblemsConfig) -> ProblemsConfig:
        """``[problems]`` with the fields of this source."""
        own = {key: value for key, value in self.model_dump().items() if key in _FIELDS and value is not None}
        return problems.model_copy(update=own)


_FIELDS = frozenset(name for name in SourceConfig.model_fields if name.endswith("_field") or name == "extract")


def _form(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(tables)"
    return "(table)" if isinstance(value, Mapping | SourceConfig) else "(name)"


Source = Annotated[Annotated[Name, Tag("(name)")] | Annotated[SourceConfig, Tag("(table)")], Discriminator(_form)]
"""One source by its name, or as a table with fields of its own."""


Sources = Annotated[
    Annotated[Name, Tag("(name)")] | Annotated[tuple[SourceConfig, ...], Field(min_length=1), Tag("(tables)")],
    Discriminator(_form),
]
"""One source by its name, or several as tables. No key is spelt like the tags, which errors leave out."""


class ProblemsConfig(Settings):
    """Where questions and answers come from.

    A source is a file (``.jsonl``, ``.parquet``), a data set by name (``hf:openai/gsm8k/main:train``) or a split of
    an embedded task (``digits:train``).
    """

    train: Sources = Field(
        "digits:train", description="source that is trained on, or several as tables [[problems.train]]"
    )
    held_out: Source = Field(
        "",
        description="source that is evaluated during training, by name or as a table [problems.held_out]; empty for "
        "none",
    )
    test: Source = Field(
        "",
        description="source that `covrl compare` measures trained models on too, by name or as a table "
        "[problems.test]; no other command reads it",
    )
    question_field: str = Field(
        "question",
        description="field with the question, or with a list of messages whose last one of the user it is; question: "
        "also prompt or messages, where a row has no field of that name",
    )
    answer_field: str = Field(
        "answer",
        description="field with the answer; answer: also reward_model.ground_truth, ground_truth, completion or the "
        "assistant's reply in the messages, where a row has no field of that name",
    )
    system_field: str = Field(
        "", description="field with the problem's own system message, in the place of prompts.system; null for none"
    )
    accepted_field: str = Field("", description="field with further accepted answers: graded, not scored")
    id_field: str = Field("", description="field with the problem's id; empty: file name and row number")
    solution_field: str = Field("", description="field with a worked solution, for `covrl warm-format` alone")
    extract: Literal["none", "hash", "boxed"] = Field(
        "none", description="how the answer is taken from its field: as it is, behind the last ####, the last \\boxed{}"
    )
    shuffle_hints: bool = Field(
        False, description="control: the posterior prompt shows another problem's answer, everything else unchanged"
    )

    @field_validator("held_out", "test", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise ValueError("expected one source, by name or as a table; several are for problems.train alone")
        return value

    @field_validator("held_out", "test")
    @classmethod
    def _without_weight(cls, value: str | SourceConfig) -> str | SourceConfig:
        if isinstance(value, SourceConfig) and value.weight != 1.0:
            raise ValueError("weight: there is one such source, so it has no weight")
        return value

    @property
    def train_names(self) -> str:
        """What is trained on, for people."""
        several = [self.train] if isinstance(self.train, str) else [source.source for source in self.train]
        return ", ".join(several)

    @property
    def fields(self) -> Fields:
        """The names of fields as the loader takes them."""
        return Fields(
            question=self.question_field,
            answer=self.answer_field,
            accepted=self.accepted_field or None,
            id=self.id_field or None,
            extract=self.extract,
            solution=self.solution_field or None,
            system=self.system_field or None,
        )

"""The run's settings: what may stand in a TOML file, with its type, default and unit.

The ``[algorithm]`` table is kept as it is apart from its ``name``: the method's own ``Config`` checks the rest when the
method is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainValidator,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from covrl.config.conditions import parse_condition
from covrl.config.styles import Style, Template, with_style, with_template
from covrl.errors import UserError
from covrl.problems.conversation import CALLED_WITH
from covrl.problems.loading import Fields
from covrl.rewards.functions import wrong_name
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


def _known_verifier(name: str) -> str:
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


class ModelConfig(Settings):
    """Which causal language model is trained."""

    path: Name = Field(description="folder or hub id of a Hugging Face causal language model with its tokenizer")
    dtype: Literal["auto", "float32", "mixed", "bfloat16", "float64"] = Field(
        "auto",
        description="dtype of the weights that are trained. mixed: float32 weights, gradients and moments, with matrix "
        "products in bfloat16. auto: mixed on an accelerator, float32 on a CPU. float32 products are whole: TF32 stays "
        "off. Pure bfloat16 loses updates below about 1/256 of a weight, so small learning rates do not train",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps, …")
    allow_pickle: bool = Field(
        False,
        description="read weights that are no safetensors (.bin) too, by torch's restricted reader; only for files of "
        "somebody you trust (docs/reliability.md)",
    )
    compile: bool = Field(False, description="torch.compile for the passes that score and train; sampling is as it was")
    offload_reference: bool = Field(
        False, description="keep models beside the policy in host memory, and on the device only while they are read"
    )


class LoraConfig(Settings):
    """Low-rank adapters in the place of all weights (docs/lora.md). Off as long as ``rank`` is 0.

    A linear layer's ``W`` becomes ``W + alpha/rank * B A``, and ``A`` and ``B`` alone are trained.
    """

    rank: int = Field(0, ge=0, description="rows of A and columns of B; 0: no adapters, all weights are trained")
    alpha: float = Field(32.0, gt=0, description="the adapter's scale, times the rank")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",),
        min_length=1,
        description='names of the linear layers that get an adapter, such as ["q_proj", "v_proj"]; all-linear: all '
        "but the output layer",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_dropout(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and (table.get("dropout") or table.get("lora_dropout")):
            raise ValueError(
                "there is no dropout: a sampled trace, its scores and its loss must be of one and the same model"
            )
        return table

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _used(self) -> LoraConfig:
        if "all-linear" in self.target_modules and len(self.target_modules) > 1:
            raise ValueError("target_modules: all-linear stands alone, or names of layers without it")
        fields = type(self).model_fields
        changed = [name for name in ("alpha", "target_modules") if getattr(self, name) != fields[name].default]
        if not self.rank and changed:
            raise ValueError(f"{changed[0]} is set, but rank is 0, so all weights are trained: set lora.rank too")
        return self


class PromptConfig(Settings):
    """The three roles as text. ``{question}`` and ``{hint}`` are replaced; nothing else is interpreted.

    prior prompt      chat(system, user) + prior_open
    posterior prompt  chat(system, posterior_user or user) + posterior_open
    answer            prior prompt + trace + close + answer_prefix + answer + answer_suffix

    ``chat`` is the tokenizer's chat template, up to where the assistant begins; without one (or with ``chat =
    "never"``) system and user text simply follow each other.

    The defaults are our wording of R1-style tags (INFERRED; the paper's wording is not known, spec section 6).
    ``style`` gives the fields that are not set another wording (:mod:`covrl.config.styles`).
    Both openings must end alike, so that a trace starts after the same text in both. ``{hint}`` stands in exactly one
    of ``posterior_user`` and ``posterior_open``; in the former, both openings are equal.
    """

    style: Style = Field(
        "tags",
        description="wording of the fields that are not set: tags, R1-style tags that the question asks for; thinking, "
        "for models that think between <think> tags by themselves; plain, natural words (`covrl prompts` tries them)",
    )
    posterior_template: Template = Field(
        "style",
        description="how the posterior prompt shows the answer in the user's turn: neutral, check (as a proposal that "
        "may be wrong), aloud, plan or bare (docs/own-model.md); style: as the style has it",
    )
    chat: Literal["auto", "never"] = "auto"
    system: str = ""
    user: str = (
        "{question}\n\nReason inside <think></think>, then give the short final answer inside <answer></answer>.\n"
    )
    prior_open: str = "<think>\n"
    posterior_user: str = Field(
        "",
        description="the user's turn of the posterior prompt, with {question} and, in the place of posterior_open, "
        "{hint}; empty: user",
    )
    posterior_open: str = (
        "The reference answer is {hint}. The reasoning below derives it from the question alone, "
        "step by step, without mentioning that it was given.\n<think>\n"
    )
    close: str = "</think>"
    answer_prefix: str = "\n<answer>"
    answer_suffix: str = "</answer>"
    template_options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="variables for the chat template, the same for all prompts, such as enable_thinking = false",
    )
    date: str = Field(
        "",
        description="what a chat template that writes the date reads, as 2026-01-31; empty: the day on which the run "
        "begins, kept with the run",
    )

    @model_validator(mode="before")
    @classmethod
    def _styled_with_equal_openings(cls, table: Any) -> Any:
        """The style's wording; with the hint in the user's turn, ``posterior_open`` is ``prior_open`` if not given."""
        if not isinstance(table, Mapping):
            return table
        table = with_template(with_style(table), cls.model_fields["user"].default)
        if "{hint}" not in str(table.get("posterior_user", "")):
            return table
        return {"posterior_open": table.get("prior_open", cls.model_fields["prior_open"].default), **table}

    @model_validator(mode="after")
    def _placeholders(self) -> PromptConfig:
        if "{question}" not in self.user:
            raise ValueError("user has no {question}, so the model would never see it")
        if "{hint}" in self.user or "{hint}" in self.prior_open:
            raise ValueError(
                "{hint} may stand in posterior_user or posterior_open only: the prior must not see the answer"
            )
        if self.posterior_user and "{question}" not in self.posterior_user:
            raise ValueError("posterior_user has no {question}, so the posterior would never see it")
        if "{hint}" in self.posterior_user:
            if self.posterior_open != self.prior_open:
                raise ValueError(
                    "posterior_user has the {hint}, so posterior_open must be prior_open: leave it out, or take the "
                    "{hint} out of posterior_user"
                )
        elif "{hint}" not in self.posterior_open:
            raise ValueError("posterior_open has no {hint}, so the posterior would not see the answer")
        if not self.close.strip() or not self.answer_suffix.strip():
            raise ValueError("close and answer_suffix must hold visible text, as generation stops at them")
        return self

    @field_validator("template_options", mode="before")
    @classmethod
    def _options(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a table such as {enable_thinking = false}")
        taken = sorted(CALLED_WITH & value.keys())
        if taken:
            raise ValueError(f"{taken[0]} is how the template is called, and no variable that it may be given")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # TOML has dates of its own
        if text and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(text)):
            raise ValueError("expected a date such as 2026-01-31")
        try:
            return text and date.fromisoformat(text).isoformat()
        except ValueError:
            raise ValueError("there is no such day; expected a date such as 2026-01-31") from None


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


class RewardsConfig(Settings):
    """Who judges training traces. Likelihood methods (CoVRL and its family) need neither setting.

    A method of the group family (GRPO and its kin) takes the function's value where there is one, else 1 for right
    and 0 for wrong. In a likelihood method the function's value is added to the reward (shaping).
    """

    verifier: str = Field(
        "text",
        description="who marks training responses right, wrong or unknown, for the methods that need it: none, exact, "
        "text, math, numeric, choice, code, reasoning-gym (docs/verifiers.md), or an installed entry point of the "
        "group covrl.verifiers. code needs bubblewrap, or code,allow_unisolated=1 runs programs under limits only",
    )
    function: str = Field(
        "",
        description="name of an installed entry point of the group covrl.rewards: (Problem, text) -> float. "
        "module:function is taken from the command line or Python only",
    )

    _verifier = field_validator("verifier")(_known_verifier)


class StepsConfig(Settings):
    """How traces are cut into reasoning steps, and who scores them, for methods that ask (docs/rewards.md)."""

    rule: Literal["lines", "paragraphs", "sentences"] = Field(
        "paragraphs", description="what ends a step; paragraphs have a blank line between them"
    )
    pattern: str = Field("", description="a regular expression in place of the rule: a step ends where a match ends")
    server: str = Field(
        "", description="address of a process reward model, http://HOST:PORT; without one a scorer is given in Python"
    )
    protocol: Literal["plain", "vllm"] = Field("plain", description="what the server speaks")
    model: str = Field("", description="the served model's name, of the protocol vllm")
    timeout_s: float = Field(60.0, gt=0, description="seconds that one request may take")
    shows_answer: bool = Field(False, description="the scorer sees the reference answer too")

    @model_validator(mode="after")
    def _used(self) -> StepsConfig:
        for name in ("protocol", "model", "timeout_s"):  # a run's own file has every setting, the defaults too
            changed = getattr(self, name) != type(self).model_fields[name].default
            self.refuse_idle(name, changed and not self.server, "no steps.server")
        return self


class RewardConfig(Settings):
    """One reward function among several: a table ``[[reward]]`` with its name, or ``[reward.NAME]`` (docs/rewards.md).

    A rollout's reward is the sum of weight x value over all of them; each value is logged as ``reward/NAME``.
    """

    function: str = Field(
        min_length=1,
        description="name of an installed entry point of the group covrl.rewards: (Problem, text) -> float, plain or "
        "async. module:function is taken from the command line (--reward NAME=module:function) or Python only",
    )
    weight: float = Field(1.0, description="factor of its value in the sum; 0 only watches it")
    batched: bool = Field(
        False, description="the function is (problems, texts) -> floats, called once for all traces of a step"
    )
    timeout_s: float = Field(600.0, ge=0, description="seconds that one call may take; 0 for no limit")
    concurrency: int | None = Field(
        None,
        ge=1,
        description="calls that run at once, in threads, or in an event loop for an async function; left out: 1, or 32 "
        "of an async function",
    )

    @model_validator(mode="after")
    def _one_call(self) -> RewardConfig:
        self.refuse_idle("concurrency", self.batched and self.concurrency not in (None, 1), "batched = true")
        return self


def rewards_by_name(given: Any) -> Any:
    """The tables ``[[reward]]`` by their names; anything else as it is."""
    if not isinstance(given, list | tuple):
        return given
    found: dict[str, Any] = {}
    for table in given:
        name = table.get("name") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            raise ValueError('each table [[reward]] needs a name, such as name = "brevity"')
        if name in found:
            raise ValueError(f"the name {name!r} comes twice; each function has one of its own")
        found[name] = {key: value for key, value in table.items() if key != "name"}
    return found


def _reward_names(found: dict[str, RewardConfig]) -> dict[str, RewardConfig]:
    wrong = next(filter(None, map(wrong_name, found)), None)
    if wrong:
        raise ValueError(wrong)
    return found


Rewards = Annotated[dict[str, RewardConfig], BeforeValidator(rewards_by_name), AfterValidator(_reward_names)]
"""Reward functions by name, in the order of the file."""


ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
"""An engine's address, so plain that all who read it agree on its host."""


def addresses(engine: str) -> list[str]:
    """The servers that ``generation.engine`` names; none where it is no address.

    Example:
        >>> addresses("http://127.0.0.1:8000, http://127.0.0.1:8001")
        ['http://127.0.0.1:8000', 'http://127.0.0.1:8001']
    """
    return [part.strip().rstrip("/") for part in engine.split(",")] if "://" in engine else []


class GenerationConfig(Settings):
    """How traces and answers are sampled. The temperature is the scorer's too."""

    temperature: float = Field(1.0, gt=0)
    max_trace_tokens: int = Field(2048, ge=1)
    max_answer_tokens: int = Field(64, ge=1)
    rows_per_pass: CountOrAuto = Field(
        "auto", description="traces that are decoded side by side; auto: as many as fit the machine and make it faster"
    )
    engine: str = Field(
        "torch",
        description="what samples (docs/engines.md): torch, the trained model itself; vllm, in this process; or the "
        "address of a vLLM server, http://HOST:PORT, or of several with commas between them",
    )
    ahead: int = Field(
        0,
        ge=0,
        description="steps whose traces a vLLM server samples while an earlier one trains (docs/engines.md), with "
        "weights that are up to so many steps old; 0: none, and every trace is of the weights that are trained",
    )
    engine_memory: float = Field(0.3, gt=0, le=1, description="engine vllm: its share of the accelerator's memory")
    engine_ranks: int = Field(
        1,
        ge=1,
        description="engine vllm with several processes: how many of them hold one copy of the model together (tensor "
        "parallel; never run by us)",
    )
    sampler_correction: Literal["token", "sequence", "off"] = Field(
        "token",
        description="truncated importance sampling (Yao et al., 2025; CONFIRMED-2nd) where another engine samples than "
        "trains: a weight min(π/π_sampler, sampler_cap) per token or per trace. The torch engine needs none",
    )
    sampler_cap: float = Field(
        2.0, ge=1, description="C of the sampler's correction (INFERRED: other implementations' default)"
    )

    @field_validator("engine")
    @classmethod
    def _engine(cls, value: str) -> str:
        if any("@" in urlsplit(one).netloc for one in addresses(value) or [value]):
            raise ValueError("an address must not hold a password; the key is read from VLLM_API_KEY")
        if value in ("torch", "vllm"):
            return value
        if addresses(value) and all(map(ADDRESS.fullmatch, addresses(value))):
            return ",".join(addresses(value))
        raise ValueError("should be torch, vllm, or the address of a vLLM server such as http://127.0.0.1:8000")


class TrainingConfig(Settings):
    """One optimizer step and how many of them. The defaults are the published ones where they are known."""

    seed: int = Field(0, ge=0)
    steps: int = Field(100, ge=1)
    problems_per_step: int = Field(192, ge=1)
    rollouts_per_problem: int = Field(8, ge=1)
    mini_batches: int = Field(1, ge=1, description="parts of a batch of rollouts, one optimizer step each")
    epochs: int = Field(1, ge=1, description="how often a batch of rollouts is gone through")
    sampling_batches: int = Field(
        1, ge=1, description="calls of the generator a step; 1 samples the whole step at once (DASH: preemptive)"
    )
    tokens_per_pass: CountOrAuto = Field(
        "auto",
        description="padded tokens in one forward and backward pass; auto: as many as fit the machine and make it "
        "faster",
    )
    logits_mb_per_chunk: CountOrAuto = Field(
        "auto",
        description="bound on the logits held at once, MiB a context. auto: 64 on a CPU; on an accelerator up to "
        "1,024, at most 1/64 of its memory",
    )
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_lr_share: float = Field(0.0, ge=0, le=1, description="learning rate at the end over its peak")
    warmup_steps: int = Field(64, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    recompute: bool = Field(False, description="compute activations again in the backward pass: less memory, more time")
    offload_moments: bool = Field(
        False,
        description="keep AdamW's moments in host memory (pinned), and on the device only inside the optimizer's step: "
        "the same bits, 8 bytes a float32 weight less while sampling and in passes, two copies of them a step",
    )
    load: Literal["whole", "parts"] = Field(
        "whole",
        description="with several processes and sharded weights: the first loads the model and hands the others their "
        "parts; or each reads its own parts from the files, so that none ever holds a whole copy, and fast paths are "
        "proved on the first layers alone: for models that are too large for one device",
    )
    weights: Literal["sharded", "replicated"] = Field(
        "sharded",
        description="with several processes: weights, gradients and moments in parts (FSDP2), or whole on each",
    )
    stream_norms_every: int = Field(
        10, ge=0, description="steps between measurements of each stream's gradient norm (a backward pass a stream)"
    )


class EvaluationConfig(Settings):
    """Held-out problems under the prior prompt, while training: accuracy, greedy and sampled, and mean log p(y|x,z)."""

    every: int = Field(10, ge=0, description="steps between evaluations, 0 for never")
    problems: int = Field(256, ge=1)
    verifier: str = Field(
        "text",
        description="who grades held-out answers, named as in rewards.verifier; with none, log p(y|x,z) alone says "
        "how training goes",
    )
    answer_temperature: float | None = Field(
        None,
        ge=0,
        description="of the answers behind sampled traces, 0 for the most likely one; left out: the trace's own. With "
        "0 a sampled figure counts what the trace is worth and not the answer's luck",
    )

    _verifier = field_validator("verifier")(_known_verifier)


class CheckpointConfig(Settings):
    """What is kept of a run. The best model by held-out evaluation is always kept."""

    every: int = Field(50, ge=1, description="steps between checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many of the newest are kept")


class GuardsConfig(Settings):
    """What ends a run that goes wrong (docs/guards.md)."""

    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="on a NaN or an infinity in scores, rewards, loss or gradient: end, or leave the step out"
    )
    skip_at_most: int = Field(3, ge=1, description="steps that non_finite = 'skip' may leave out in the whole run")
    stop_when: tuple[str, ...] = Field(
        (), description="conditions on any metric that end the run: 'kl/nats_per_token > 2', 'entropy/prior < 0.01'"
    )
    window: int = Field(20, ge=1, description="steps over whose mean stop_when is judged")
    step_deadline_s: float = Field(
        0.0, ge=0, description="seconds after which a step counts as hung and the process ends; 0 for never"
    )
    publish_check_every: int = Field(
        1, ge=0, description="steps between comparisons of trainer and generator on one row; 0 for never"
    )

    @field_validator("stop_when")
    @classmethod
    def _conditions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_condition(text)
        return value


class ReportConfig(Settings):
    """What the report shows besides the curves."""

    traces_every: int = Field(10, ge=1, description="steps between the groups that are kept for reading")
    groups_shown: int = Field(3, ge=1)
    thoughts_every: int = Field(
        5,
        ge=0,
        description="steps between looks at what a trace is worth to the answer, against no trace and another "
        "problem's (thought/gain, thought/read of methods that score answers), and at what a wrong hint does to it "
        "(hint/* of those that also score traces with the answer in sight): two more rows each for half of the "
        "problems; 0: never, in evaluations neither",
    )
    hedging_words: tuple[str, ...] = Field(
        ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check"),
        description="words whose rate in traces shows doubt (style/hedges_prior), for other languages to be set anew. "
        "The list is CONFIRMED (arXiv 2603.24472, its code); empty: no rate",
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        (), description="also log to these; each is an extra of the package"
    )
    tracker_project: str = Field(
        "covrl", min_length=1, description="project of the run in wandb and trackio, its experiment in mlflow"
    )
    tracker_name: str = Field("", description="name of the run in them; empty: that of its folder")
    tracker_tags: tuple[str, ...] = Field((), description="tags of the run in wandb and mlflow")


class HubConfig(Settings):
    """Where the model goes when the run has ended (`covrl push` does the same at any time)."""

    push: str = Field("", description="repository OWNER/NAME of the Hugging Face hub; empty: none. HF_TOKEN is needed")
    private: bool = Field(True, description="whether a repository that is made for it is private")


class AlgorithmTable(BaseModel):
    """``[algorithm]``: the method's name, and its own settings, which the method checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "covrl"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything in the table but the name."""
        return dict(self.__pydantic_extra__ or {})


class RunConfig(Settings):
    """All settings of one run."""

    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    algorithm: AlgorithmTable = AlgorithmTable()
    prompts: PromptConfig = PromptConfig()
    problems: ProblemsConfig = ProblemsConfig()
    rewards: RewardsConfig = RewardsConfig()
    reward: Rewards = Field(default_factory=dict)
    steps: StepsConfig = StepsConfig()
    generation: GenerationConfig = GenerationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardsConfig = GuardsConfig()
    report: ReportConfig = ReportConfig()
    hub: HubConfig = HubConfig()

    @property
    def rewarded(self) -> bool:
        """Whether reward functions are named in it, one or several."""
        return bool(self.rewards.function or self.reward)

    @model_validator(mode="after")
    def _one_spelling(self) -> RunConfig:
        if self.rewards.function and self.reward:
            raise ValueError(
                f"rewards.function = {self.rewards.function!r} and [[reward]] stand side by side: give the one "
                f'function a name too, as [[reward]] name = "…", function = "{self.rewards.function}"'
            )
        return self

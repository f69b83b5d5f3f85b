"""The run's settings: what may stand in a TOML file, with its type, default and unit.

The ``[algorithm]`` table is kept as it is apart from its ``name``: the method's own ``Config`` checks the rest when the
method is loaded.
"""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from covrl.config.base import CountOrAuto, Settings, known_verifier
from covrl.config.conditions import parse_condition
from covrl.config.model import LoraConfig, ModelConfig
from covrl.config.problems import ProblemsConfig
from covrl.config.prompts import PromptConfig
from covrl.config.rewards import Rewards, RewardsConfig, StepsConfig

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
    handover: Literal["files", "nccl", "adapters"] = Field(
        "files",
        description="how vLLM servers get new weights (docs/engines.md): as safetensors in shared memory or a folder, "
        "with LoRA whole matrices W + alpha/rank * B A; over NCCL (never run by us); or, of a LoRA run, the adapter "
        "alone, for servers that were started with the base model and --enable-lora",
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

    @model_validator(mode="after")
    def _handed_over_to_servers(self) -> GenerationConfig:
        if self.handover != "files" and not addresses(self.engine):
            raise ValueError(
                f"handover = {self.handover} is for vLLM servers, and engine is {self.engine}: leave handover out, or "
                "set engine to a server's address"
            )
        return self


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
    eight_bit_moments: bool = Field(
        False,
        description="keep AdamW's moments of matrices as 8-bit codes with a scale for each block of 256 (block-wise "
        "dynamic quantisation, Dettmers et al., 2021): about 2 bytes a weight for both in the place of 8, and other "
        "numbers than with whole moments",
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

    @model_validator(mode="after")
    def _one_place_for_moments(self) -> TrainingConfig:
        if self.eight_bit_moments and self.offload_moments:
            raise ValueError("eight_bit_moments and offload_moments do not go together: set one of them to false")
        return self


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

    _verifier = field_validator("verifier")(known_verifier)


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

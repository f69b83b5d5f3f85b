"""The run's settings: their classes (``schema``, and a file for each of the larger sections), the check of a table
(``checks``), files and ``--set`` (``files``).

Importing this package does not import torch.
"""

from covrl.config.base import Settings
from covrl.config.checks import LONGEST_SHOWN, check
from covrl.config.files import (
    config_from,
    override,
    read_settings,
    read_toml,
    refuse_idle_style,
    reward_assignments,
    to_toml,
    typed_rewards,
)
from covrl.config.model import LoraConfig, ModelConfig
from covrl.config.problems import ProblemsConfig, SourceConfig
from covrl.config.prompts import PromptConfig
from covrl.config.rewards import RewardConfig, RewardsConfig, StepsConfig
from covrl.config.schema import (
    AlgorithmTable,
    CheckpointConfig,
    EvaluationConfig,
    GenerationConfig,
    GuardsConfig,
    HubConfig,
    ReportConfig,
    RunConfig,
    TrainingConfig,
    addresses,
)
from covrl.problems.conversation import CALLED_WITH

__all__ = [
    "CALLED_WITH",
    "LONGEST_SHOWN",
    "AlgorithmTable",
    "CheckpointConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "GuardsConfig",
    "HubConfig",
    "LoraConfig",
    "ModelConfig",
    "ProblemsConfig",
    "PromptConfig",
    "ReportConfig",
    "RewardConfig",
    "RewardsConfig",
    "RunConfig",
    "Settings",
    "SourceConfig",
    "StepsConfig",
    "TrainingConfig",
    "addresses",
    "check",
    "config_from",
    "override",
    "read_settings",
    "read_toml",
    "refuse_idle_style",
    "reward_assignments",
    "to_toml",
    "typed_rewards",
]

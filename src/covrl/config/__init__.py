"""The run's settings: their classes (``schema``), the check of a table (``checks``), files and ``--set`` (``files``).

Importing this package does not import torch.
"""

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
from covrl.config.schema import (
    CALLED_WITH,
    AlgorithmTable,
    CheckpointConfig,
    EvaluationConfig,
    GenerationConfig,
    GuardsConfig,
    HubConfig,
    LoraConfig,
    ModelConfig,
    ProblemsConfig,
    PromptConfig,
    ReportConfig,
    RewardConfig,
    RewardsConfig,
    RunConfig,
    Settings,
    SourceConfig,
    StepsConfig,
    TrainingConfig,
)

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

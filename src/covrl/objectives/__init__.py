"""Pure functions that methods are made of: tensors (or numbers) in, tensors out, no state."""

from covrl.objectives.advantages import centred, leave_one_out, standardised
from covrl.objectives.composite import composite_kl, composite_kl_estimate, composite_log_prob
from covrl.objectives.contrast import contrast_residual, contrasted
from covrl.objectives.denominators import groups_count, prior_traces, trace_tokens, traces
from covrl.objectives.distillation import clipped_divergence, divergence_entries
from covrl.objectives.kl import forward_kl, kl_estimate, reverse_kl, tempered
from covrl.objectives.prefix_values import prefix_values
from covrl.objectives.ratio import (
    capped,
    clipped_ratio,
    doubly_clipped_ratio,
    smoothly_capped,
    truncated_importance,
)
from covrl.objectives.returns import generalised_advantages, return_to_go, whitened
from covrl.objectives.sequences import between_extremes, next_in_sequence, sequence_mean
from covrl.objectives.written import written_only, written_part

__all__ = [
    "between_extremes",
    "capped",
    "centred",
    "clipped_divergence",
    "clipped_ratio",
    "composite_kl",
    "composite_kl_estimate",
    "composite_log_prob",
    "contrast_residual",
    "contrasted",
    "divergence_entries",
    "doubly_clipped_ratio",
    "forward_kl",
    "generalised_advantages",
    "groups_count",
    "kl_estimate",
    "leave_one_out",
    "next_in_sequence",
    "prefix_values",
    "prior_traces",
    "return_to_go",
    "reverse_kl",
    "sequence_mean",
    "smoothly_capped",
    "standardised",
    "tempered",
    "trace_tokens",
    "traces",
    "truncated_importance",
    "whitened",
    "written_only",
    "written_part",
]

"""Pure functions that methods are made of: tensors (or numbers) in, tensors out, no state."""

from covrl.objectives.advantages import centred
from covrl.objectives.composite import composite_kl, composite_kl_estimate, composite_log_prob
from covrl.objectives.denominators import prior_traces, trace_tokens
from covrl.objectives.ratio import clipped_ratio

__all__ = [
    "centred",
    "clipped_ratio",
    "composite_kl",
    "composite_kl_estimate",
    "composite_log_prob",
    "prior_traces",
    "trace_tokens",
]

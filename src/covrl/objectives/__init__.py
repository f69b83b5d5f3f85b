"""Pure functions that methods are made of: tensors (or numbers) in, tensors out, no state."""

from covrl.objectives.advantages import centred
from covrl.objectives.composite import composite_kl, composite_kl_estimate, composite_log_prob
from covrl.objectives.denominators import prior_traces, trace_tokens
from covrl.objectives.ratio import capped, clipped_ratio, smoothly_capped

__all__ = [
    "capped",
    "centred",
    "clipped_ratio",
    "composite_kl",
    "composite_kl_estimate",
    "composite_log_prob",
    "prior_traces",
    "smoothly_capped",
    "trace_tokens",
]

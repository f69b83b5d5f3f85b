"""The processes that share a run's work: torchrun's, or the one process there is. Knows no run and no model."""

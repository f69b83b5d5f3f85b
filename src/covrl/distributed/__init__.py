"""The processes that share a run's work: torchrun's, or a single process. Independent of runs and models."""

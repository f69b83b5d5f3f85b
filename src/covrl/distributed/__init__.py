"""The processes that share a run's work (torchrun's, or one), weights in parts (FSDP2) and files of such parts.

Independent of runs; loads no model.
"""

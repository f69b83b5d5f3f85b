"""The parts of gpu_check.py: each has ``findings``, which yields one table for each thing that it looked at."""

"""One module for each command: its options, and what it calls once these are read.

Nothing heavy is imported before a command runs.
"""

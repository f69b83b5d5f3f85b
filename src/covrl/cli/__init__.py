"""The command line: one module for each command, and the console that they write to."""

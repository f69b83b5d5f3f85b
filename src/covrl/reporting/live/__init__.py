"""The page of a run that is still going on, served on this machine: ``covrl view RUN --live``."""

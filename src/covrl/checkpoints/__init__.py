"""The folder of a run: what is written while it trains, checkpoints, and whether a resumed run is still the same."""

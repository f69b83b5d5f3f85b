"""The loop, one optimizer step, and what a run is made of."""

"""How much memory a run takes and the machine has: arithmetic that knows no run."""

"""Speed against TRL: workloads, a worker for each side, floors. ``benchmarks/run.py`` runs them."""

"""What ends, skips or questions a step: numbers that are not finite, divergence, stale weights, rewards that part."""

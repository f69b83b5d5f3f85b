"""Held-out accuracy, leak rates, intervals."""

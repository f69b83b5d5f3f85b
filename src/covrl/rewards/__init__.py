"""Rewards of traces: answer likelihoods, verifiers and reward functions."""

"""Sampling traces: the protocol, the random numbers, the stop rule and the torch engine."""

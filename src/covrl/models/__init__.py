"""The models: a language model and its fast paths, value heads, adapters, safe loading, proofs at load."""

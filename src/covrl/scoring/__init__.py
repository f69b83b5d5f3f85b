"""Reading traces with a model: contexts, head functions on chunks of logits, packing."""

"""Models on the Hugging Face hub: what goes there, and its card."""

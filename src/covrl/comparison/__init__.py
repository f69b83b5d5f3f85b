"""Methods trained from the same base under the same conditions, and their results: ``covrl compare``."""

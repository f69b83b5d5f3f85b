"""Methods trained from the same base under the same conditions, and what came of it: ``covrl compare``."""

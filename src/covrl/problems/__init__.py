"""Where questions come from, and the order in which a run meets them."""

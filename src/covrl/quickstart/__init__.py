"""The embedded laptop tasks: their recipes and tiny bases, and the command that trains and measures them."""

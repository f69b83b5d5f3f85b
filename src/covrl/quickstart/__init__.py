"""The embedded laptop task: its prompts, its tiny base model and the commands that make and measure it."""

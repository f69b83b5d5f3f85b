"""The texts of the laptop task: tags, prompts and vocabulary. Imports no torch."""

from __future__ import annotations

PRIOR_PROMPT = "<user>{question}<assistant><think>"
POSTERIOR_PROMPT = "<user>{question}<hint>{hint}<assistant><think>"
TRACE_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
SPECIAL = (PAD, EOS, UNK)

TAGS = ("<user>", "<hint>", "<assistant>", "<think>", TRACE_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
DIGITS = tuple("0123456789")
# With their spaces, so that a trace is its tokens joined and nothing has to be put between them.
OPENING_WORDS = ("sort ", "copy ", "largest ", "smallest ", "sum ")
INNER_WORDS = (" low ", " middle ", " high ", " first ", " last ", " ends ")

VOCABULARY = SPECIAL + TAGS + DIGITS + OPENING_WORDS + INNER_WORDS
"""Every token; its index is its id."""

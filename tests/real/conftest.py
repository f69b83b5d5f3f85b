"""The real model for tests in this folder."""

from real_model_of_tests import real_model

__all__ = ["real_model"]

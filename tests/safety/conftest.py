"""The fixtures of this folder."""

from safe_project import command, made, project

__all__ = ["command", "made", "project"]

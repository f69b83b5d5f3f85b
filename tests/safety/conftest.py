"""The fixtures of this folder."""

from mines import attacks, browser, server
from safe_project import command, made, project

__all__ = ["attacks", "browser", "command", "made", "project", "server"]

"""The terminal that a run reports to."""

from rich.console import Console

CONSOLE = Console()
"""Prints in the main process and in others alike; what only one of them has to say, it prints alone."""

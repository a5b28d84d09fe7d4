"""The terminal that a run reports to."""

from rich.console import Console

CONSOLE = Console()

"""The version of the package, which runs and checkpoints carry."""

__version__ = "0.2.0"

"""Reads a captured dataset, and writes the edited one."""

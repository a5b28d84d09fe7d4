"""One run of an edit: its plan, its stages, its files."""

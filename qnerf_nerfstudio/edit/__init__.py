"""edit.json: its schema, and reading it."""

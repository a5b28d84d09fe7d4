"""The pages that a browser shows: posing an edit, and the report of a run."""

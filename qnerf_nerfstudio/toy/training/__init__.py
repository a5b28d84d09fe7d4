"""Training of the bundled editor; docs/bundled_editor.md says how and why."""

"""The procedural figure: its capture, the bundled editor, its training and scoring."""

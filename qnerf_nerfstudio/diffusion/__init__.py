"""The editor: a diffusers ControlNet model set and what the method does with it."""

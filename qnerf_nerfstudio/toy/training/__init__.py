"""Training of the bundled editor. Needs torch, diffusers and transformers, not nerfstudio."""

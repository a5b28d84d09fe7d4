"""What plugs into nerfstudio: pipeline, trainer, scheduler and viewer panel."""

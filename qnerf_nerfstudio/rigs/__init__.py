"""Bones, the matter that belongs to them, and meshes that move with them."""

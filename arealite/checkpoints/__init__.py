"""Checkpoints as folders: complete or invisible, checked by digests, chosen and thrown away."""

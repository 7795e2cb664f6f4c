"""Workflows: how one row is played. Copy one and change it; each is a class of its own."""

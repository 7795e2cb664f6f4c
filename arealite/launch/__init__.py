"""From one configuration to running processes. Never imports torch."""

from arealite.launch.command import launch

__all__ = ["launch"]

"""What a version publishes: the manifest of kept rows. Every build ends with it; a recipe need not name it."""

from tasks.publish.samples import Samples

__all__ = ["Samples"]

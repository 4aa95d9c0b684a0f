"""The `publish` family: what a version publishes, the manifest of kept rows. Every build ends with it."""

from tasks.publish.samples import Samples

AnyPublish = Samples
"""Every member. A recipe does not name it: it is added to each."""

__all__ = ["AnyPublish", "Samples"]

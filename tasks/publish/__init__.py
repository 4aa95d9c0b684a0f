"""The `publish` family: the manifest of kept rows, which a version publishes. Every build ends with it."""

from tasks.publish.samples import Samples

AnyPublish = Samples
"""Every member. A recipe does not name it: it is added to each."""

__all__ = ["AnyPublish", "Samples"]

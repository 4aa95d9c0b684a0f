"""The `download` family: images from URLs, or from the files of a local source."""

from tasks.download.download import Download

AnyDownload = Download
"""Every member that a recipe can name."""

__all__ = ["AnyDownload", "Download"]

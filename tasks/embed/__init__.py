"""Vectors of images and captions."""

from tasks.embed.embed import Embed

AnyEmbed = Embed

__all__ = ["AnyEmbed", "Embed"]

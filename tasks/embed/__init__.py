"""The `embed` family: vectors of images and captions."""

from tasks.embed.embed import Embed
from tasks.encoders.encoder import Encoder

AnyEncoder = Encoder
"""Every encoder that `encoders` can name."""
AnyEmbed = Embed
"""Every member that a recipe can name."""

Embed.model_rebuild(_types_namespace={"AnyEncoder": AnyEncoder})

__all__ = ["AnyEmbed", "AnyEncoder", "Embed"]

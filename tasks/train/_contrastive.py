"""The contrastive loss of CLIP for batches in which several images may have the same caption."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def contrastive_loss(
    images: "torch.Tensor", texts: "torch.Tensor", scale: "torch.Tensor", caption_ids: "torch.Tensor"
) -> "torch.Tensor":
    """Return the symmetric InfoNCE loss of unit vectors (n, d) and (n, d); `caption_ids`: int64 (n,), equal for equal
    captions.

    Every image with the same caption is a positive, with equal weight: small corpora repeat captions, and treating such
    pairs as negatives would separate matching pairs. With distinct captions it is exactly CLIP's loss.
    Source: CLIP, arXiv:2103.00020, figure 3; the soft targets as in SupCon, Khosla et al., arXiv:2004.11362, eq. 2.
    """
    from torch.nn.functional import log_softmax

    logits = scale * images @ texts.T
    same = (caption_ids[:, None] == caption_ids[None, :]).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)  # symmetric: equal captions have equal rows
    of_images = -(targets * log_softmax(logits, dim=1)).sum(dim=1).mean()
    of_texts = -(targets * log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (of_images + of_texts) / 2

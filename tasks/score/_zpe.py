"""ZPE: weights of the templates of a zero-shot classifier, from images without labels.

With logits L[n, p, c] of image n, template p and label c (including the logit scale), and their means over reference
images and over the test images, E_ref[p, c] and E_test[p, c]:

    s_p = mean_n max_c (L[n, p, c] - (E_ref[p, c] + E_test[p, c]) / 2)        w = softmax(s)

A template with high logits for every image is debiased by the means; one that distinguishes labels has a high maximum.
Logits are linear in the image, so a mean of logits is the logit of the mean image: only the mean vector of the
reference is needed. Adding a constant a[p, c] to all images' logits changes nothing.

Source: Allingham et al., A simple zero-shot prompt weighting technique, ICML 2023, arXiv:2302.06235, section 3.2.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def template_scores(
    blocks: Iterable["torch.Tensor"], prompts: np.ndarray, centre: np.ndarray, logit_scale: float
) -> np.ndarray:
    """Return s: float64 (p,).

    blocks: image vectors, float32 (n, d) tensors on one device, each read once; prompts: float32 (p, c, d), in memory
    or mapped; centre: (d,), the mean of the reference's and of the images' mean vectors. Holds one template's logits
    of one block at a time. Raises ValueError without images.
    """
    import torch

    total, count = np.zeros(len(prompts)), 0
    for images in blocks:
        centred = images - torch.from_numpy(centre.astype(np.float32)).to(images.device)
        for number, template in enumerate(prompts):
            vectors = torch.from_numpy(np.ascontiguousarray(template)).to(images.device)
            best = (centred @ vectors.T).amax(1)
            total[number] += float(best.double().sum()) * logit_scale
        count += len(images)
    if count == 0:
        raise ValueError("expected one image vector at least, found none")
    return total / count


def template_weights(scores: np.ndarray) -> np.ndarray:
    """Return softmax(scores): float64 (p,), sums to 1."""
    weights: np.ndarray = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights

"""ZPE against the paper's formula, its invariance, and synthetic data with known good templates."""

import numpy as np
import pytest

from tasks.score._zpe import template_scores, template_weights


def formula(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return s by the paper's formula: logits (n, p, c), and the reference's (m, p, c), all in memory."""
    debiased = logits - (reference.mean(0) + logits.mean(0)) / 2
    return np.asarray(debiased.max(2).mean(0))


def ours(images: np.ndarray, prompts: np.ndarray, centre: np.ndarray, scale: float, block: int = 64) -> np.ndarray:
    import torch

    rows = torch.from_numpy(images.astype(np.float32))
    return template_scores(rows.split(block), prompts.astype(np.float32), centre, scale)


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_scores_and_weights_are_the_formulas(block: int) -> None:
    rng = np.random.default_rng(0)
    images, reference = rng.normal(size=(150, 12)), rng.normal(size=(90, 12)) + 0.3
    prompts = rng.normal(size=(5, 7, 12))
    expected = formula(*(2.5 * np.einsum("nd,pcd->npc", x, prompts) for x in (images, reference)))
    found = ours(images, prompts, (images.mean(0) + reference.mean(0)) / 2, 2.5, block)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    weights = template_weights(found)
    np.testing.assert_allclose(weights, np.exp(expected) / np.exp(expected).sum(), rtol=1e-5)
    assert weights.sum() == pytest.approx(1)


def test_values_computed_by_hand() -> None:
    # Two images, one template that tells them apart (logits +-1) and one that sees the same in both.
    images, prompts = np.array([[1.0], [-1.0]]), np.array([[[1.0], [-1.0]], [[0.0], [0.0]]])
    scores = ours(images, prompts, np.zeros(1), 1.0)
    np.testing.assert_allclose(scores, [1, 0])
    np.testing.assert_allclose(template_weights(scores), [0.7310586, 0.2689414], atol=1e-7)


def world(seed: int, n: int = 400, classes: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (logits (n, 14, classes), labels (n,), which of the templates are informative).

    3 informative templates, 7 of noise, 2 with a constant offset of 5, 2 with a random offset a class: the world of
    research S49, which leaves two strengths open. With 4 and 5 for them it gives what is reported there: ZPE puts .68
    on the informative ones, and classifies at 1.00, equal weights at .47 (there .45), the naive score at .11.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    signal = np.zeros(14)
    signal[:3] = 4
    logits = rng.normal(size=(n, 14, classes))
    logits[np.arange(n), :, labels] += signal
    logits[:, 10:12] += 5
    logits[:, 12:] += rng.normal(size=(2, classes)) * 5
    return logits, labels, signal > 0


def as_features(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (images, prompts) whose inner products are these logits: every logit is a separate dimension."""
    n, p, c = logits.shape
    return logits.reshape(n, p * c), np.eye(p * c).reshape(p, c, p * c)


def accuracy(weights: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> float:
    return float((np.einsum("p,npc->nc", weights, logits).argmax(1) == labels).mean())


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_informative_templates_and_the_mean_logit_does_not(seed: int) -> None:
    logits, labels, informative = world(seed)
    images, prompts = as_features(logits)
    weights = template_weights(ours(images, prompts, images.mean(0), 1.0))
    naive = template_weights(logits.max(2).mean(0))
    equal = np.full(14, 1 / 14)
    assert naive[10:].sum() > 0.97
    assert weights[informative].sum() > 0.5
    assert accuracy(weights, logits, labels) > accuracy(equal, logits, labels) + 0.3
    assert accuracy(weights, logits, labels) > accuracy(naive, logits, labels) + 0.7
    shuffled = np.roll(weights, 5)
    assert accuracy(shuffled, logits, labels) < accuracy(equal, logits, labels)


def test_a_constant_on_all_images_changes_nothing() -> None:
    logits, *_ = world(0, n=120)
    offset = np.random.default_rng(9).normal(size=(1, *logits.shape[1:])) * 4
    found = []
    for each in (logits, logits + offset):
        images, prompts = as_features(each)
        found.append(template_weights(ours(images, prompts, images.mean(0), 1.0)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    naive = [template_weights(each.max(2).mean(0)) for each in (logits, logits + offset)]
    assert np.abs(naive[0] - naive[1]).max() > 0.1


def test_no_image_raises() -> None:
    with pytest.raises(ValueError, match="expected one image vector at least, found none"):
        template_scores([], np.zeros((2, 3, 4), np.float32), np.zeros(4), 1.0)

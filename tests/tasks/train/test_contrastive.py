"""The loss, against open_clip's own and against a loop over pairs."""

import math

from tasks.encoders.torchvision_on_cpu import ensure_torchvision


def test_distinct_captions_give_open_clips_loss() -> None:
    ensure_torchvision()
    import torch
    from open_clip.loss import ClipLoss

    from tasks.train._contrastive import contrastive_loss

    chance = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(9, 5, generator=chance), dim=1) for _ in range(2))
    ours = contrastive_loss(images, texts, torch.tensor(7.0), torch.arange(9))
    torch.testing.assert_close(ours, ClipLoss()(images, texts, torch.tensor(7.0)))


def test_equal_captions_share_the_target() -> None:
    import torch

    from tasks.train._contrastive import contrastive_loss

    chance = torch.Generator().manual_seed(1)
    images = torch.nn.functional.normalize(torch.randn(6, 4, generator=chance), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(3, 4, generator=chance), dim=1)[[0, 1, 0, 2, 1, 0]]
    ids = [0, 1, 0, 2, 1, 0]
    logits = (5 * images @ texts.T).tolist()

    def side(rows: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            partition = math.log(sum(math.exp(x) for x in row))
            positives = [row[j] - partition for j in range(6) if ids[j] == ids[i]]
            total -= sum(positives) / len(positives)
        return total / 6

    expected = (side(logits) + side([list(column) for column in zip(*logits, strict=True)])) / 2
    found = contrastive_loss(images, texts, torch.tensor(5.0), torch.tensor(ids))
    assert abs(found.item() - expected) < 1e-5

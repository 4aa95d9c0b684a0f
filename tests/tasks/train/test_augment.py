"""Random views: seeded, of the right size and range, and really crops and mirrors of their picture."""


def test_views_depend_on_the_seed_alone() -> None:
    import torch

    from tasks.train._augment import random_views

    pictures = torch.randint(0, 256, (7, 3, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, two, other = (random_views(pictures, 32, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (7, 3, 32, 32)
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.min() >= -0.1
    assert one.max() <= 1.3


def test_without_chance_a_view_is_the_resized_picture() -> None:
    import torch

    from tasks.train._augment import Changes, random_views

    none = Changes(area=(1.0, 1.0), aspect=0.0, brightness=0.0, tint=0.0)
    pictures = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = random_views(pictures, 32, torch.Generator().manual_seed(0), none)
    plain = pictures.float() / 255
    mirrored = [bool(torch.allclose(v, p.flip(2), atol=1e-4)) for v, p in zip(views, plain, strict=True)]
    upright = [bool(torch.allclose(v, p, atol=1e-4)) for v, p in zip(views, plain, strict=True)]
    assert [a != b for a, b in zip(mirrored, upright, strict=True)] == [True] * 16
    assert 0 < sum(mirrored) < 16

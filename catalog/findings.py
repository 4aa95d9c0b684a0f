"""What a verification found: each damaged file, and how much was checked."""

from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Damage:
    """One damaged file."""

    path: str
    """Relative to the dataset."""
    kind: str
    """missing, size, digest or unreadable."""
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.detail}"


@dataclass
class Findings:
    """What was checked, and what is damaged."""

    label: str
    files: int = 0
    bytes: int = 0
    without_digest: int = 0
    """Files of an older release: decoded, as they have no digest."""
    damages: list[Damage] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.damages

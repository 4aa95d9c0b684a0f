"""Findings: sorted damages, a line each; sound where there is none."""

from catalog.findings import Damage, Findings


def test_a_damage_is_one_line() -> None:
    assert str(Damage("shards/a.tar", "size", "1 byte, expected 2")) == "shards/a.tar: size: 1 byte, expected 2"


def test_findings_are_sound_until_something_is_damaged() -> None:
    findings = Findings("birds")
    assert findings.is_sound
    findings.damages += [Damage("b", "missing", "it does not exist"), Damage("a", "size", "0 bytes, expected 1")]
    assert not findings.is_sound
    assert [damage.path for damage in sorted(findings.damages)] == ["a", "b"]

"""Hostile YAML: one line that says where, for whatever a recipe, a fragment or `--set` holds."""

import os
import random
from pathlib import Path

import pytest
import yaml

from catalog.errors import RecipeError, UserError
from flows.recipe.recipe import Recipe, parse, resolve
from flows.recipe.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, compose, read_text, value_of
from tests.helpers import recipe_in

pytestmark = pytest.mark.timeout(120)  # each takes milliseconds; without its limit it takes minutes, or all memory
CONFIGS = Path(__file__).parents[3] / "configs"
GOOD = """\
dataset: laion
source: {use: parquet, path: urls}
stages:
  - use: download
"""
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: x}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
HOSTILE = {
    "NUL": ("description: a\0b\n", "U+0000"),
    "bell": ("description: a\x07b\n", "U+0007"),
    "escaped NUL": ('description: "a\\0b"\n', "U+0000"),
    "escaped escape": ('description: "\\e[31m"\n', "U+001B"),
    "escaped surrogate": ('description: "\\ud800"\n', ":5"),
    "python object": ("description: !!python/object/apply:os.system [id]\n", "the tag"),
    "python name": ("seed: !!python/name:os.system\n", "the tag"),
    "tag": ("seed: !mine 3\n", "the tag '!mine'"),
    "binary": ("seed: !!binary AAAA\n", "the tag '!!binary'"),
    "set": ("prices: !!set {a, b}\n", "the tag '!!set'"),
    "timestamp": ("seed: !!timestamp 2024-13-45\n", "the tag"),
    "impossible date": ("seed: 2024-13-45\n", "seed"),
    "no int": ("seed: !!int x\n", "not a number"),
    "no float": ("seed: !!float x\n", "not a number"),
    "int of nothing": ("seed: 0b_\n", "not a number"),
    "str of a list": ("seed: !!str [a]\n", "not YAML"),
    "10^10000": (f"seed: {10**4000}\n", "too large"),
    "more digits than Python reads": (f"seed: 1{'0' * 10000}\n", "too large"),
    "long hex": (f"seed: 0x{'f' * 10000}\n", "too large"),
    "1e999": ("prices: {cpu_hour: 1.0e+999}\n", "too large"),
    "1e999 as text": ("prices: {cpu_hour: 1e999}\n", "finite"),
    "inf": ("prices: {cpu_hour: .inf}\n", "finite"),
    "nan": ("prices: {cpu_hour: .nan}\n", "cpu_hour"),
    "65 bits": ("seed: 9223372036854775808\n", "too large"),
    "65 bits as text": ("seed: '9223372036854775808'\n", "seed"),
    "base 60": (f"seed: {':'.join(['1'] * 100_000)}\n", "seed"),
    "deep list": ("description: " + "[" * 100_000 + "\n", f"more than {MAX_DEPTH} deep"),
    "deep mapping": ("description: " + "{a: " * 100_000 + "\n", f"more than {MAX_DEPTH} deep"),
    "deep block": ("description:\n" + "".join(" " * n + "-\n" for n in range(1, 1000)), f"more than {MAX_DEPTH} deep"),
    "laughs": (LAUGHS, "aliases expanded"),
    "merged laughs": (MERGES, "aliases expanded"),
    "long chain": (CHAIN, "aliases expanded"),
    "recursive list": ("description: &a [*a]\n", "alias refers to a node that contains it"),
    "recursive key": ("description: &a {? *a : 1}\n", "alias refers to a node that contains it"),
    "recursive merge": ("description: &a {<<: *a}\n", "alias refers to a node that contains it"),
    "unknown alias": ("description: *a\n", "not YAML"),
    "merge of a text": ("prices: {<<: x}\n", "not YAML"),
    "key of a list": ("prices: {? [a] : 1}\n", "not YAML"),
    "twice": ("seed: 1\nseed: 2\n", "twice"),
    "second document": ("---\ndataset: b\n", "second document"),
    "tab": ("\tseed: 1\n", "not YAML"),
    "many values": ("description: [" + "x, " * (MAX_NODES * 3) + "]\n", f"more than {MAX_NODES:,} values"),
    "directive": ("--- \n%YAML 9.9\n", ":5"),
    "many stages": ("  - use: download\n" * 5000, "stages"),
    "key with a line in it": ('"a\\nb": 1\n', "unknown field"),
    "long key": ("k" * 900 + ": 1\n", "unknown field"),
    "long value": ("seed: '" + "[" * 100_000 + "'\n", "seed"),
    "number as a key": ("1: 2\n", "expected a name"),
    "stages merged": ("<<: {stages: [{include: no.yaml}]}\n", "recipe"),
    "variable of nothing": ("description: ${}\nseed: ${X\n", "seed"),
    "too many variables": ("description: '" + "${PATH}" * 100_000 + "'\n", "too large"),
}


def is_one_line(error: UserError) -> bool:
    """Say whether a message is one line a mistake, of at most five, that a terminal can show."""
    lines = str(error).splitlines()
    return 1 <= len(lines) <= 5 and all(len(line) < 1500 and line.isprintable() for line in lines)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_one_line(name: str) -> None:
    text, words = HOSTILE[name]
    if name == "stages merged":  # what the mapping itself gives counts
        assert len(parse(GOOD + text).stages) == 1
        return
    with pytest.raises(RecipeError) as caught:
        parse(GOOD + text, "r.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("r.yaml")
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    "name", ["deep list", "laughs", "python object", "10^10000", "bell", "recursive list", "base 60"]
)
def test_a_value_of_an_override_or_of_the_environment_is_text_or_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HOSTILE[name][0].partition(": ")[2].strip()[:100_000]
    with pytest.raises(RecipeError) as caught:
        parse(GOOD, overrides=[f"seed={text}"])
    assert is_one_line(caught.value)
    monkeypatch.setenv("HOSTILE", text)
    with pytest.raises(RecipeError) as caught:
        parse(GOOD + "seed: ${HOSTILE}\n")
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *("", "=", "a", ".=1", "..=1", "stages=5", "stages.0.use=x", "source=3", "source.a.b=1", "seed.x=1"),
        *("a.b=c\x07", "download.resources.²=1", "source.path=[a]", "download=[", "seed=\udcff"),
        *("prices." + "x." * 5000 + "y=1", f"source.{'9' * 5000}=1"),
    ],
)
def test_a_strange_override_is_one_line(override: str) -> None:
    for first in ([], ["stages=5"], ["source.path=[a]"], ["stages=[5, {use: download}]"]):
        try:
            parse(GOOD, overrides=[*first, override, "source.path.²=1"])
        except UserError as error:
            assert is_one_line(error)  # noqa: PT017  # some are recipes


def test_includes_that_multiply_each_other(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"f{n}.yaml").write_text(f"- include: f{n + 1}.yaml\n- include: f{n + 1}.yaml\n")
    (tmp_path / "f40.yaml").write_text("[]\n")
    fill = "- include: g{m}.yaml\n  with: {{x: '${{x}}${{x}}${{x}}${{x}}${{x}}${{x}}${{x}}${{x}}'}}\n"
    nest = "- include: n{m}.yaml\n  with: {{x: [['${{x}}']]}}\n"
    twice = "- include: t{m}.yaml\n  with: {{x: ['${{x}}', '${{x}}', '${{x}}']}}\n"
    for n in range(40):
        (tmp_path / f"g{n}.yaml").write_text(fill.format(m=n + 1))
        (tmp_path / f"n{n}.yaml").write_text(nest.format(m=n + 1))
        (tmp_path / f"t{n}.yaml").write_text(twice.format(m=n + 1))
    for name in "gnt":
        (tmp_path / f"{name}40.yaml").write_text("- {use: filter, where: '${x}'}\n")
    path = tmp_path / "r.yaml"
    for include in (
        "f0.yaml",
        "g0.yaml\n    with: {x: ha}",
        "n0.yaml\n    with: {x: ha}",
        "t0.yaml\n    with: {x: ha}",
    ):
        path.write_text(GOOD + f"  - include: {include}\n")
        with pytest.raises(RecipeError, match=r"too large|nested more than") as caught:
            recipe_in(path)
        assert is_one_line(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100_000_000)
    (tmp_path / "latin.yaml").write_bytes(b"dataset: x\ndescription: caf\xe9\n")
    (tmp_path / "utf16.yaml").write_bytes(GOOD.encode("utf-16"))
    for path, words in [
        (tmp_path / "pipe.yaml", "a pipe, expected a file"),
        (tmp_path, "a folder, expected a file"),
        (Path("/dev/zero"), "a device, expected a file"),
        (tmp_path / "large.yaml", f"larger than {MAX_BYTES:,} bytes"),
        (tmp_path / "latin.yaml", "line 2 is not UTF-8 (byte 0xe9)"),
        (tmp_path / "utf16.yaml", "line 1 is not UTF-8"),
        (tmp_path / "pipe.yaml" / "x", "Not a directory"),
        (Path("x" * 5000), "File name too long"),
        (Path("a\0b"), "embedded null "),  # byte, or character, by the version of Python
        (tmp_path / "no.yaml", "no recipe"),
    ]:
        with pytest.raises(UserError) as caught:
            recipe_in(path)
        assert words in str(caught.value)
        assert is_one_line(caught.value)
    (tmp_path / "r.yaml").write_text(GOOD + "  - include: pipe.yaml\n")
    with pytest.raises(RecipeError, match="a pipe, expected a file"):
        recipe_in(tmp_path / "r.yaml")
    (tmp_path / "bom.yaml").write_text("\ufeff" + GOOD)
    assert recipe_in(tmp_path / "bom.yaml") == parse(GOOD)
    for text in ("", "# nothing\n", "---\n", "null\n", "3\n", "[a]\n"):
        with pytest.raises(RecipeError, match="is a mapping"):
            parse(text)


def test_plain_words_are_what_they_look_like() -> None:
    text = "[no, on, 2024-01-31, '16:9', 16:9, =, 010, 0x1f, 1_000, 1.5, .5, 1.0e+3, true, ~, null, '1']"
    assert value_of(text) == [
        *("no", "on", "2024-01-31", "16:9", "16:9", "=", 8, 31, 1000, 1.5, 0.5, 1000.0, True, None, None, "1")
    ]
    assert compose("{a: &x {b: 1}, c: {<<: *x, d: 2}}", "t")[0] == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_shipped_recipes_mean_what_pyyaml_says_they_do() -> None:
    paths = sorted(CONFIGS.rglob("*.y*ml"))
    assert paths
    for path in paths:
        assert compose(read_text(path), str(path))[0] == yaml.safe_load(path.read_text()), path


def mutated(text: str, rng: random.Random) -> str:
    """Return a text with some damage: characters, lines and pieces of hostile ones, put in, taken out or moved."""
    pieces = [each[0] for each in HOSTILE.values() if len(each[0]) < 200]
    for _ in range(rng.randint(1, 4)):
        lines = text.splitlines(keepends=True) or [""]
        at, other, place = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.randint(0, len(text))
        match rng.randrange(9):
            case 0:
                text = text[:place] + rng.choice("[]{}:,-?&*!|>'\"%@`#~<=.0\t\n\0\x85\u2028é𝄞") + text[place:]
            case 1:
                text = text[:place] + text[place + rng.randint(1, 10) :]
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
                text = "".join(lines)
            case 3:
                lines[at] = rng.choice([" ", "  ", "\t", "- ", "? ", ": "]) + lines[at]
                text = "".join(lines)
            case 4:
                lines.insert(at, lines[other])
                text = "".join(lines)
            case 5:
                text = text[:place] + rng.choice(pieces).partition(": ")[2].rstrip("\n") + text[place:]
            case 6:
                key, colon, _ = lines[at].partition(":")
                value = rng.choice(
                    ["", "[]", "{}", "null", "-1", "1.0e+300", "9223372036854775807", "[[1]]", "{a: {b: c}}"]
                )
                lines[at] = f"{key}{colon} {value}\n"
                text = "".join(lines)
            case 7:
                text = text[:place]
            case _:
                text = text.replace(rng.choice(lines).strip() or " ", rng.choice(pieces).strip(), 1)
    return text


def test_whatever_is_written_is_a_recipe_or_a_mistake(tmp_path: Path) -> None:
    rng = random.Random(8)
    texts = [path.read_text() for path in sorted(CONFIGS.rglob("*.y*ml"))]
    recipes = [text for text in texts if "dataset:" in text]
    fragments = [text for text in texts if "dataset:" not in text]
    assert recipes
    assert fragments
    built = 0
    for n in range(3000):
        if n % 3:
            text = mutated(rng.choice(recipes), rng)
        else:
            (tmp_path / "f.yaml").write_text(mutated(rng.choice(fragments), rng), "utf-8")
            text = GOOD + "  - include: f.yaml\n"
        try:
            recipe, resolved = resolve(text, str(tmp_path / "r.yaml"))
            assert isinstance(recipe, Recipe)
            again = parse(resolved, "again")
            assert again == recipe
            built += 1
        except UserError as error:
            assert is_one_line(error), text  # noqa: PT017
    assert built > 100

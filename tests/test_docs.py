"""The documents agree with the program: links resolve, commands and options exist, recipes plan, examples run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.parts import PartWriter, written_schema
from catalog.runs import RUNS
from catalog.schema import CLUSTERS, DECISIONS, EDGES, FAULT, IMAGES, MODELS, SAMPLE_ID, SOURCE
from catalog.version import VERSIONS, TableState, VersionFacts
from flows.build.plan import make_plan
from flows.cli.app import app
from flows.recipe.guards import Guards
from flows.recipe.recipe import Recipe, parse, stage_models
from tests.pictures import jpeg
from tests.stages import write_source

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
DOCS: Final = ROOT / "docs"
DOCUMENTS: Final = sorted((*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *(ROOT / "infra").glob("**/*.md")))
MEASUREMENTS: Final = {"benchmarks.md", "claims.md"}
"""Documents whose options are those of benchmarks."""
PATHS: Final = re.compile(r"(?:flows|tasks|catalog|configs|tests|infra|docs)/[\w./-]+")

COMMANDS: Final[Mapping[str, click.Command]] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Return the inline code of a document."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def indented(text: str) -> list[str]:
    """Return the lines of indented blocks, without what a terminal prints beside them."""
    return [line.strip() for line in prose(text).splitlines() if line.startswith("    ")]


def section(text: str, heading: str) -> str:
    """Return a document from one heading to the next of the same level or above."""
    level, found = heading.split(" ", 1)[0], f"\n{text}".split(f"\n{heading}\n", 1)
    assert len(found) == 2, f"no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", found[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[list[str]]:
    """Return the rows of the first table of a text, without its head."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
        elif rows:
            break
    return rows[2:]


def names(text: str, heading: str) -> list[str]:
    """Return the code in the first column of the first table below a heading."""
    return [name for row in table(section(text, heading)) for name in re.findall(r"`([^`]+)`", row[0])]


# Links


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    """Return the relative links of a document that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(path.read_text()))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_relative_links_and_anchors_resolve(path: Path) -> None:
    assert broken(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](#a-heading) [b](#none) [c](page.md#a-heading) [d](none.md) [e](https://x.org/y)\n"
    )
    assert broken(page) == ["#none", "none.md"]


def test_the_readme_links_every_document() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README.read_text()))
    assert linked == {str(path.relative_to(ROOT)) for path in DOCS.glob("*.md")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_the_files_that_are_named_exist(path: Path) -> None:
    named = {span for span in spans(path.read_text()) if PATHS.fullmatch(span) and not span.startswith("tests/FILE")}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_the_targets_of_make_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = [*spans(path.read_text()), *indented(path.read_text())]
    named = {match[1] for text in code if (match := re.match(r"(?:\w+=\w+ )?make ([a-z-]+)", text))}
    assert named <= targets


# Commands


class Line(NamedTuple):
    """One command line of a document."""

    text: str
    command: str
    arguments: list[str]


def command_lines(texts: list[str]) -> Iterator[Line]:
    """Return what calls `espalier` with a command."""
    for text in texts:
        call = re.fullmatch(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?espalier ([a-z]\S*)(.*)", text)
        if call:
            yield Line(text, call[1], shlex.split(call[2], comments=True))


def options(command: click.Command) -> set[str]:
    """Return the names of a command's options."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def unknown(line: Line) -> list[str]:
    """Return what a command line names that `espalier --help` does not."""
    if line.command not in COMMANDS:
        return [line.command]
    used = [a.partition("=")[0] for a in line.arguments if re.match(r"--?[a-z]", a)]
    return [option for option in used if option not in options(COMMANDS[line.command])]


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_and_their_options_exist(path: Path) -> None:
    text = path.read_text()
    found = {line.text: bad for line in command_lines([*spans(text), *indented(text)]) if (bad := unknown(line))}
    assert found == {}


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.parent == DOCS or p == README], ids=ids)
def test_whole_command_lines_parse(path: Path) -> None:
    """With all arguments that they require, and values of the right type."""
    for line in command_lines(indented(path.read_text())):
        COMMANDS[line.command].make_context(line.command, line.arguments)


def test_an_unknown_option_is_found() -> None:
    known, wrong, missing = command_lines(["espalier plan R --probe 9", "espalier ls --prob", "espalier nothing x"])
    assert (unknown(known), unknown(wrong), unknown(missing)) == ([], ["--prob"], ["nothing"])


@pytest.mark.parametrize("path", [p for p in DOCS.glob("*.md") if p.name not in MEASUREMENTS], ids=ids)
def test_options_that_are_named_alone_exist(path: Path) -> None:
    every = set[str]().union(*map(options, COMMANDS.values()))
    alone = {span.split()[0] for span in spans(path.read_text()) if re.match(r"--?[a-z]", span)}
    assert alone - every <= {"--debug", "--version", "--install-completion"}


def test_the_guide_lists_every_command_with_options_of_its_own() -> None:
    rows = table(section((DOCS / "guide.md").read_text(), "## Commands"))
    listed = []
    for first, about in rows:
        (line,) = command_lines([first.strip("`")])
        listed.append(line.command)
        named = re.findall(r"`(-[^`]+)`", about)
        assert {span.split()[0] for span in named} <= options(COMMANDS[line.command]), line.command
    assert sorted(listed) == sorted(COMMANDS)


# Recipes


RECIPES: Final = [
    pytest.param(block, id=f"{path.name}-{i}")
    for path in (README, *sorted(DOCS.glob("*.md")))
    for i, block in enumerate(blocks(path, "yaml"))
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_plan(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they name: a source, weights, an opt-out list, evaluation sets as a file and as a version."""
    write_source(tmp_path / "urls", files=1)
    (tmp_path / "aesthetic.pth").write_bytes(b"weights")
    (tmp_path / "optout.txt").write_text("example.org\n")
    pq.write_table(pa.table({"image": [jpeg(64, 64, 0)]}), tmp_path / "imagenet_val.parquet")
    monkeypatch.chdir(tmp_path)
    recipe = parse(text, overrides=[f"source.path={tmp_path}/urls"])
    catalog = Catalog(tmp_path / "catalog", create=True)
    for name, _, number in (label.partition("@") for label in recipe.versions.values()):
        for version in range(int(number or 1)):
            publish_images(catalog.dataset(name), f"{version}")
    plan = make_plan(recipe, catalog.dataset("any"))
    assert all(stage.missing for stage in plan.stages)


def publish_images(dataset: Dataset, name: str) -> None:
    """Publish a version of one sample, without its picture."""
    tables = {}
    for table, schema in (("images", IMAGES), ("samples", pa.schema([SAMPLE_ID]))):
        with PartWriter(dataset.storage, table, name, schema) as writer:
            if table == "samples":
                writer.write(pa.table({"sample_id": [0]}, schema=schema))
        tables[table] = TableState(written_schema(schema), [writer.part()])
    dataset.publish(tables, VersionFacts("", name, "test"))


def test_the_readme_and_the_documents_have_recipes() -> None:
    assert [param.id for param in RECIPES] == ["README.md-0", "recipes.md-0", "recipes.md-1"]


def discriminated(schema: Any, key: str) -> set[str]:
    """Return the names that the recipe's JSON Schema accepts in the lists or unions called `key`."""
    if isinstance(schema, list):
        return set[str]().union(*(discriminated(value, key) for value in schema))
    if not isinstance(schema, dict):
        return set()
    found = set[str]().union(*(discriminated(value, key) for value in schema.values()))
    union = schema.get("properties", {}).get(key, {})
    return found | set(union.get("items", union).get("discriminator", {}).get("mapping", {}))


def test_the_tables_of_recipes_are_the_model() -> None:
    text = (DOCS / "recipes.md").read_text()
    schema = Recipe.model_json_schema()
    sources = discriminated(schema, "source")
    uses = {str(model.model_fields["use"].default) for model in stage_models()}
    methods = {str(m.model_fields["method"].default) for m in stage_models() if "method" in m.model_fields}
    entries = table(section(text, "## Stages").split("stand for several stages", 1)[1])
    inner = {name for row in entries for name in re.findall(r"`([^`]+)`", row[1])}
    assert names(text, "# Recipes") == [field.alias or name for name, field in Recipe.model_fields.items()]
    assert set(names(text, "## Sources")) == sources
    assert set(names(text, "## Stages")) | inner == uses - sources
    assert set(names(text, "### Selectors (`use: prune`)")) == methods
    assert set(names(text, "### Scorers (`use: score`)")) == discriminated(schema, "scorers")
    assert names(text, "## Guards") == list(Guards.model_fields)


def test_the_shipped_recipes_and_fragments_are_listed() -> None:
    shipped = section((DOCS / "recipes.md").read_text(), "## Fragments, variables, overrides")
    listed = re.findall(r"`(\w+\.yaml)`", shipped)
    configs = ROOT / "configs"
    assert sorted(listed) == sorted(p.name for p in (*configs.glob("*.yaml"), *configs.glob("filters/*.yaml")))


# Tables


def test_the_columns_of_tables_are_the_schemas() -> None:
    text = section((DOCS / "layout-on-disk.md").read_text(), "## Tables")
    listed = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[2]) for row in table(text)}
    schemas = {"images": IMAGES, "decisions": DECISIONS, "clusters": CLUSTERS, "models": MODELS, "edges": EDGES}
    schemas |= {"versions": VERSIONS, "runs": RUNS}
    assert listed["source"] == [*SOURCE.names, *(field.name for field in FAULT)]
    assert {name: listed[name] for name in schemas} == {name: schema.names for name, schema in schemas.items()}


# Benchmarks


def figures(path: Path) -> set[str]:
    """Return the names of benchmarks in the tables of a document."""
    return set(re.findall(r"^\| `(\w+)[^`]*`:", path.read_text(), flags=re.MULTILINE))


def test_every_row_of_the_benchmarks_names_its_program() -> None:
    programs = {path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}
    assert len(figures(README)) == 6
    assert figures(README) | figures(DOCS / "benchmarks.md") <= programs
    named = set(re.findall(r"`bench_(\w+)\.py`", "".join(p.read_text() for p in DOCS.glob("*.md"))))
    assert named <= programs
    assert named | figures(DOCS / "benchmarks.md") == programs


# Training on the result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a dataset `demo` of 12 pictures, half of which a filter removes; run the README's query beside it."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "pictures").mkdir()
    for i in range(12):
        (folder / "pictures" / f"{i}.jpg").write_bytes(jpeg(100 + 20 * (i % 2), 90, i))
        (folder / "pictures" / f"{i}.txt").write_text(f"picture {i}")
    (folder / "recipe.yaml").write_text(
        "dataset: demo\n"
        "source: {use: folder, path: pictures, rows_per_part: 5}\n"
        "stages:\n"
        "  - {use: download, resize_mode: keep_ratio, resize_only_if_bigger: true}\n"
        "  - {use: filter, where: images.width > 110}\n"
    )
    (query,) = indented(section(README.read_text(), "## Train on the result"))
    for line in ("espalier build recipe.yaml --executor inline", query):
        done = in_folder(folder, ["-m", "flows.cli", *shlex.split(line)[1:]])
        assert done.returncode == 0, done.stderr
    return folder


def in_folder(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_readmes_example_yields_the_kept_rows(built: Path) -> None:
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line]) == 5
    done = in_folder(built, ["-c", example + "print(sorted((caption, *image.shape) for image, caption in pairs))"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted((f"picture {i}", 3, 90, 120) for i in range(1, 12, 2)))


def test_the_guides_example_trains(built: Path) -> None:
    (example,) = blocks(DOCS / "guide.md", "python")
    example += "    print(len(images), all(p.grad is not None for p in model.parameters()))\n"
    done = in_folder(built, ["-c", example])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6", "True"]


def test_one_range_read_returns_an_image(built: Path) -> None:
    (example,) = blocks(DOCS / "layout-on-disk.md", "python")
    columns = "shard, byte_offset, byte_size"
    row = sql(Catalog(built / "datasets"), f"select {columns} from demo.samples order by sample_id").to_pylist()[0]
    done = in_folder(built, ["-c", f"row = {row!r}\n{example}import sys; sys.stdout.write(encoded[:2].hex())"])
    assert (done.returncode, done.stdout) == (0, "ffd8"), done.stderr

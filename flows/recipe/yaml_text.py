"""Read YAML that users write: recipes, fragments, and the values of `--set` and of environment variables.

The file is not trusted, so everything has a limit, and every problem is one RecipeError with the file and line:

    file         a regular file of at most 1 MiB, UTF-8
    characters   printable ones, tabs and ends of lines, also those that quoted text escapes
    nesting      40 levels, with aliases expanded
    values       20,000, with aliases expanded
    numbers      64 bits for whole numbers; the others finite, or written as .inf and .nan
    tags         those of JSON's types: no Python object, binary, date or set

The dialect is PyYAML's YAML 1.1, except that `no`, `on`, `16:9` and `2024-01-31` are text.
"""

import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from catalog.errors import NotFoundError, RecipeError
from catalog.user_file import kind_of

MAX_BYTES: Final = 1 << 20
"""Most bytes of one file."""
MAX_DEPTH: Final = 40
MAX_NODES: Final = 20_000
_MAX_DIGITS: Final = 400
SHOWN: Final = 60
SHOWN_PATH: Final = 500
"""Most characters of a value, and of a path, in a message."""
_TAG: Final = "tag:yaml.org,2002:"
_TAGS: Final = frozenset(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PATTERNS: Final = {
    "bool": (r"true|True|false|False", "tTfF"),
    "int": (r"[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""Plain scalars that are not text, besides null and the merge key `<<`."""

if TYPE_CHECKING:
    _Base = yaml.SafeLoader
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's: 20 times faster, the same values


class _Loader(_Base):
    """The YAML dialect of recipes."""


def _number(read: Callable[[Any, Any], Any]) -> Callable[[Any, yaml.ScalarNode], Any]:
    def construct(loader: Any, node: yaml.ScalarNode) -> Any:
        text = str(node.value)
        try:
            value = read(loader, node) if len(text) <= _MAX_DIGITS else None
        except (ValueError, IndexError, OverflowError):
            raise _wrong(f"{shown(text)} is not a number", node) from None
        if value is None or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
            raise _wrong(f"{shown(text)} is too large: a whole number has at most 64 bits", node)
        if value in (float("inf"), float("-inf")) and "inf" not in text.lower():
            raise _wrong(f"{shown(text)} is too large for a number", node)
        return value

    return construct


def _wrong(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_kept = {_TAG + "null", _TAG + "merge"}
_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag in _kept])
}
for _name, (_pattern, _first) in _PATTERNS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_TAG + "int", _number(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor(_TAG + "float", _number(yaml.SafeLoader.construct_yaml_float))


class _Named(io.StringIO):
    """A text that passes the name of its file to the marks of its nodes."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def read_text(path: str | Path, what: str = "recipe") -> str:
    """Return the text of a YAML file. Errors refer to it as `what`.

    Raises NotFoundError if it does not exist, and RecipeError if it is not a regular file (a pipe or a device might
    never end), too large, or not UTF-8.
    """
    named = shown(str(path), SHOWN_PATH)
    wrong = f"cannot read the {what} {named}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"no {what} {named}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{wrong}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if kind := kind_of(os.fstat(descriptor).st_mode):
            raise RecipeError(f"{wrong}: it is {kind}, expected a file")
        with open(descriptor, "rb", closefd=False) as file:  # a descriptor
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{wrong}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{wrong}: it is larger than {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{wrong}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})") from None


def compose(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """Return the value of a YAML text and its nodes, whose marks have the line and the file. Raises RecipeError."""
    check_text(text, name)
    if len(text.encode()) > MAX_BYTES:
        raise RecipeError(f"{name}: it is larger than {MAX_BYTES:,} bytes")
    try:
        _check_events(text, name)
        loader = _Loader(_Named(text, name))
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _check_node(node, {}, {})
            return loader.construct_document(node), node
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from None


def value_of(text: str) -> Any:
    """Return the YAML value of a text, or the text itself if it is not YAML: `*.parquet` is a glob, not an alias."""
    try:
        return compose(text, "value")[0]
    except RecipeError:
        return text


def check_text(text: str, name: str) -> None:
    """Raise RecipeError if a text has an invisible or invalid character."""
    if found := _FORBIDDEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise RecipeError(f"{name}:{line}: the character U+{ord(found[0]):04X} may not be in a recipe")


def shown(value: object, most: int = SHOWN) -> str:
    """Return a value for a message: on one line, truncated."""
    text = value if isinstance(value, str) else None
    cut = repr(value if text is None or len(text) <= most else text[: most - 3] + "...")
    return cut if len(cut) <= 2 * most else cut[: 2 * most] + "..."


def where(node: yaml.Node) -> str:
    """Return `file:line` of a node."""
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


@dataclass
class Budget:
    """Limits what fragments and variables add to one recipe: they can double its size at every level."""

    name: str
    characters: int = 4 * MAX_BYTES
    nodes: int = MAX_NODES
    files: int = 200

    def text(self, text: str) -> str:
        """Return a text that replaces a variable."""
        self.characters -= len(text)
        self._check()
        return text

    def value(self, value: Any) -> Any:
        """Return a value that replaces a variable."""
        level, depth = [value], 0
        while level:
            self.nodes -= len(level)
            self.characters -= sum(len(each) for each in level if isinstance(each, str))
            self._check()
            level = [child for each in level for child in _children(each)]
            depth += 1
        if depth > MAX_DEPTH:
            raise RecipeError(f"{self.name}: with its variables filled in, it is nested more than {MAX_DEPTH} deep")
        return value

    def file(self, nodes: int) -> None:
        """Count one more fragment and its values."""
        self.files -= 1
        self.nodes -= nodes
        self._check()

    def _check(self) -> None:
        if min(self.characters, self.nodes, self.files) < 0:
            raise RecipeError(f"{self.name}: its fragments and variables make it too large: they double each other?")


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_events(text: str, name: str) -> None:
    """Raise RecipeError if a text is nested too deep or has too many values, before nodes are constructed."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(_Named(text, name), Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        wrong = f"is nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else ""
        wrong = f"has more than {MAX_NODES:,} values" if count > 2 * MAX_NODES else wrong
        wrong = "a second document begins here, expected one" if documents > 1 else wrong
        if wrong:
            raise RecipeError(f"{name}:{event.start_mark.line + 1 if event.start_mark else 1}: {wrong}")


def _check_node(node: yaml.Node, sizes: dict[int, int], heights: dict[int, int]) -> None:
    """Raise RecipeError if a mapping has a key twice (YAML would take the last), a node contains itself, or a node is
    too large with its aliases expanded. `sizes` and `heights` hold the values of the nodes that were checked before."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise RecipeError(f"{where(node)}: an alias refers to a node that contains it")
        return
    if node.tag not in _TAGS:
        raise RecipeError(f"{where(node)}: the tag {shown(_tag(node.tag))} may not be in a recipe")
    if isinstance(node, yaml.ScalarNode):
        check_scalar(node)
        sizes[id(node)], heights[id(node)] = 1, 0
        return
    sizes[id(node)] = 0
    children = [part for child in node.value for part in (child if isinstance(child, tuple) else (child,))]
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    for child in children:
        _check_node(child, sizes, heights)
    size, height = 1 + sum(sizes[id(c)] for c in children), 1 + max((heights[id(c)] for c in children), default=0)
    if size > MAX_NODES:
        raise RecipeError(f"{where(node)}: has more than {MAX_NODES:,} values, with its aliases expanded")
    if height > MAX_DEPTH:
        raise RecipeError(f"{where(node)}: is nested more than {MAX_DEPTH} deep, with its aliases expanded")
    sizes[id(node)], heights[id(node)] = size, height


def check_scalar(node: yaml.ScalarNode) -> None:
    """Raise RecipeError if quoted text escapes a character that is not allowed."""
    if found := _FORBIDDEN.search(node.value):
        raise RecipeError(f"{where(node)}: the character U+{ord(found[0]):04X} may not be in a recipe")


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise RecipeError(f"{where(key)}: {shown(key.value)}: is given twice, in line {seen[key.value]} too")
            seen[key.value] = key.start_mark.line + 1


def _tag(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag

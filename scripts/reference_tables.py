"""Make tables of options from the fields that declare them, or from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.option_fields import key_of

__all__ = ["Section", "markdown", "table", "yaml_value"]


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: where in the file the options stand.
        source: a dataclass whose fields ``option`` made; or a class or function whose docstring
            documents the parameters of its signature.
        own: leave out the fields that a dataclass inherits.
        allowed: option → values that the code allows, if a constant lists them.
        defaults: option → its default, if the caller replaces that of the signature.
        intro: a paragraph before the table.
    """

    title: str
    source: Callable[..., Any]
    own: bool = False
    allowed: Mapping[str, Collection[Any] | str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    intro: str = ""


def table(section: Section) -> str:
    """Return the table of a section.

    Raises:
        QuantFaceError: the code reads an option that nothing describes.
    """
    rows = _field_rows(section) if _has_options(section.source) else _signature_rows(section)
    lines = ["| option | type | default | what |", "|---|---|---|---|"]
    for name, kind, default, text in rows:
        shown = section.defaults.get(name, default)
        allowed = section.allowed.get(name)
        if allowed is not None:
            text = f"{text} Allowed: {_listed(allowed)}."
        lines.append(f"| `{name}` | {_kind(kind)} | {shown} | {markdown(text)} |")
    return "\n".join(lines)


def _listed(allowed: Collection[Any] | str) -> str:
    return allowed if isinstance(allowed, str) else ", ".join(map(yaml_value, allowed))


def _has_options(source: Callable[..., Any]) -> bool:
    """Return whether a source is a dataclass whose fields ``option`` made."""
    return is_dataclass(source) and all("help" in item.metadata for item in fields(source))


def _field_rows(section: Section) -> Iterator[tuple[str, str, str, str]]:
    """Yield the name, type, default and text of every field that ``option`` made."""
    own = vars(section.source).get("__annotations__", {})
    for item in fields(section.source):
        if section.own and item.name not in own:
            continue
        data = item.metadata
        text = data["help"]
        if data["allowed"] is not None:
            text = f"{text} Allowed: {_listed(data['allowed'])}."
        elif data["limits"] is not None:
            text = f"{text} Allowed: {data['limits']}."
        if data["old_name"] is not None:
            text = f"{text} Old name: `{data['old_name']}`."
        yield key_of(item), str(item.type), data["shown"] or _field_default(item), text


def _signature_rows(section: Section) -> Iterator[tuple[str, str, str, str]]:
    """Yield the name, type, default and text of every parameter of a signature."""
    described = documented(section.source)
    signature = _signature(section.source)
    missing = sorted(set(signature) - set(described))
    if missing:
        raise QuantFaceError(
            f"{section.source.__qualname__}: its docstring does not describe {', '.join(missing)}"
        )
    for name, text in described.items():
        if name in signature:
            yield name, *signature[name], text


def documented(source: Callable[..., Any]) -> dict[str, str]:
    """Return the text of each parameter in a docstring's section Args or Attributes."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in (inspect.getdoc(source) or "").splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Args:", "Attributes:")
            continue
        entry = re.match(r" {4}(\w+(?:, \w+)*): (.*)$", line) if inside else None
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif inside and line.strip():
            found.update(dict.fromkeys(names, f"{found[names[-1]]} {line.strip()}"))
    return found


def _signature(source: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """Return the (type, default) of each parameter."""
    if is_dataclass(source):
        return {item.name: (str(item.type), _field_default(item)) for item in fields(source)}
    parameters = inspect.signature(source).parameters.values()
    return {
        item.name: (
            str(item.annotation),
            "required" if item.default is item.empty else yaml_value(item.default),
        )
        for item in parameters
        if item.kind is item.POSITIONAL_OR_KEYWORD and item.name not in ("img", "img2")
    }


def _field_default(item: Any) -> str:
    if item.default is not MISSING:
        return yaml_value(item.default)
    if item.default_factory is MISSING:
        return "required"
    made = item.default_factory()
    return yaml_value(made) if isinstance(made, (dict, list, tuple)) else "as below"


def yaml_value(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(yaml_value, value))}]"
    return "{}" if value == {} else str(value).replace("*", "\\*")


def _kind(annotation: str) -> str:
    """Return a type in YAML's words."""
    text = re.sub(r"os\.PathLike\[str\] \| | \| os\.PathLike\[str\]", "", annotation)
    text = re.sub(r"Sequence\[.+\]", "list", text)
    text = re.sub(r"Mapping\[.+\]|dict\[.+\]|\bdict\b", "mapping", text)
    while re.search(r"tuple\[[^\[\]]*\]", text):
        text = re.sub(r"tuple\[[^\[\]]*\]", "list", text)
    text = re.sub(r"\w+(?:Spec|Options)|Degradation", "mapping", text).replace("None", "null")
    return text.replace(" | ", " or ")


def markdown(text: str) -> str:
    """Return a docstring's text as Markdown, with YAML's words for values."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"::\n\n((?: {4}.*\n)+)", lambda m: f":\n\n```yaml\n{_dedent(m[1])}```\n", text)
    return re.sub(r"\bNone\b", "null", text).replace(" | ", " or ")


def _dedent(block: str) -> str:
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)

"""Tables of options from the docstrings and signatures of the code that reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from quantface_arch.errors import QuantFaceError

__all__ = ["Section", "documented", "markdown", "table", "yaml_value"]


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: where in the file the options stand.
        source: class or function whose docstring documents them.
        header: regular expression of the docstring's section.
        names: the options that the code reads, all of which have to be documented; None: those of
            the signature.
        allowed: option → values that the code allows, where a constant lists them.
        defaults: option → its default where the signature's is replaced by the caller.
        intro: a paragraph before the table.
    """

    title: str
    source: Callable[..., Any]
    header: str = "(?:Args|Attributes)"
    names: Collection[str] | None = None
    allowed: Mapping[str, Collection[Any] | str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    intro: str = ""


def table(section: Section) -> str:
    """The table of a section.

    Raises:
        QuantFaceError: the code reads an option that the docstring does not have.
    """
    described = documented(section.source, section.header)
    signature = _signature(section.source) if section.names is None else {}
    names = signature if section.names is None else section.names
    missing = sorted(set(names) - set(described))
    if missing:
        raise QuantFaceError(
            f"{section.source.__qualname__}: its docstring says nothing of {', '.join(missing)}"
        )
    lines = ["| option | type | default | what |", "|---|---|---|---|"]
    for name, (kind, text) in described.items():
        if section.names is None and name not in signature:
            continue
        default = ""
        if name in signature:
            kind, default = signature[name]
        else:
            text, default = _split_default(text)
        default = section.defaults.get(name, default)
        allowed = section.allowed.get(name)
        if allowed is not None:
            shown = allowed if isinstance(allowed, str) else ", ".join(map(yaml_value, allowed))
            text = f"{text} Allowed: {shown}."
        lines.append(f"| `{name}` | {_kind(kind)} | {default} | {markdown(text)} |")
    return "\n".join(lines)


def documented(source: Callable[..., Any], header: str) -> dict[str, tuple[str, str]]:
    """Option → (type, text) of the docstring sections whose header matches."""
    found: dict[str, tuple[str, str]] = {}
    inside = False
    for line in (inspect.getdoc(source) or "").splitlines():
        if line and not line.startswith(" "):
            inside = bool(re.match(rf"{header}.*:$", line))
            continue
        entry = re.match(r" {4}(\w+(?:, \w+)*)(?: \((.+?)\))?: (.*)$", line) if inside else None
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, (entry[2] or "", entry[3])))
        elif inside and line.strip():
            last = found[names[-1]]
            found.update(dict.fromkeys(names, (last[0], f"{last[1]} {line.strip()}")))
    return found


def _signature(source: Callable[..., Any]) -> dict[str, tuple[str, str]]:
    """Parameter → (type, default)."""
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
    return yaml_value(made) if isinstance(made, (dict, tuple)) else "as below"


def _split_default(text: str) -> tuple[str, str]:
    """The text without its sentence on the default, and that."""
    found = re.search(r" Default:? (.+)\.$", text)
    return (text[: found.start()], markdown(found[1])) if found else (text, "required")


def yaml_value(value: Any) -> str:
    """A value as it stands in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(yaml_value, value))}]"
    return "{}" if value == {} else str(value).replace("*", "\\*")


def _kind(annotation: str) -> str:
    """A type in YAML's words."""
    text = re.sub(r"os\.PathLike\[str\] \| | \| os\.PathLike\[str\]", "", annotation)
    text = re.sub(r"Mapping\[.+\]|dict\[.+\]|\bdict\b", "mapping", text)
    while re.search(r"tuple\[[^\[\]]*\]", text):
        text = re.sub(r"tuple\[[^\[\]]*\]", "list", text)
    text = re.sub(r"QuantSpec|BalanceSpec|BranchSpec", "mapping", text).replace("None", "null")
    return text.replace(" | ", " or ")


def markdown(text: str) -> str:
    """A docstring's text as Markdown, with YAML's words for values."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"::\n\n((?: {4}.*\n)+)", lambda m: f":\n\n```yaml\n{_dedent(m[1])}```\n", text)
    return re.sub(r"\bNone\b", "null", text).replace(" | ", " or ")


def _dedent(block: str) -> str:
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)

"""Include, as an mkdocs hook, files outside docs/ that pages link to, such as the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add every file that a page names with ``../``, under its path in the repository."""
    for page in list(files.documentation_pages()):
        for name in LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            source = f"repository/{name}"
            if files.get_file_from_path(source) is None and (REPO / name).is_file():
                files.append(File.generated(config, source, abs_src_path=str(REPO / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to such files, and the links from such files back into docs/."""
    if page.file.src_uri.startswith("repository/"):
        return re.sub(r"\]\(docs/", "](../", markdown)
    return LINK.sub(r"](repository/\1", markdown)

"""Hooks of MkDocs: they add files outside docs/ that pages link to, and render equations.

A link such as `../benchmarks/demo` works in the repository. In the site the file is a page too, and the link
is rewritten to it. TeX in GitHub's two notations becomes MathML, which browsers show without a script.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:)[^()#\s]+")
BLOCK = re.compile(r'<div class="math">(.*?)</div>', re.DOTALL)
INLINE = re.compile(r"\$<code>(.*?)</code>\$")


def find(link: str, page: Path) -> Path | None:
    """The file of the repository that a link of a page leads to, or None.

    A link to a folder leads to the last page in it by name, or else to its last JSON file.
    """
    target = (page.parent / link).resolve()
    if target.is_dir():
        target = max(target.glob("*.md"), default=max(target.glob("*.json"), default=target))
    return target if target.is_file() and target.is_relative_to(REPOSITORY) else None


def site_path(target: Path) -> str:
    """The path in the site of a file of the repository."""
    return target.relative_to(DOCS if target.is_relative_to(DOCS) else REPOSITORY).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and the files that those link to."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = find(link, page)
            if target and files.get_file_from_path(site_path(target)) is None:
                files.append(File.generated(config, site_path(target), abs_src_path=str(target)))
                pages += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to the paths that files have in the site."""
    source, folder = Path(page.file.abs_src_path or ""), posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = find(link[0], source)
        return posixpath.relpath(site_path(target), folder or ".") if target else link[0]

    return LINK.sub(rewritten, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Render TeX as MathML, in blocks of the language `math` and in inline code between dollars."""
    content = BLOCK.sub(lambda block: f'<div class="math">{to_mathml(block[1], "block")}</div>', content)
    return INLINE.sub(lambda code: to_mathml(code[1], "inline"), content)


def to_mathml(tex: str, display: str) -> str:
    """MathML of HTML-escaped TeX; `display` is `block` or `inline`."""
    return convert(html.unescape(tex).strip(), display=display)

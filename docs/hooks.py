"""What MkDocs does for these pages beside its configuration: files outside docs/ that they link to, and equations.

A link such as `../benchmarks/demo/results.md` works in the repository; here the file becomes a part of the site, and the
link is rewritten to it. GitHub's two ways of writing TeX become MathML, which browsers show without a script.
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
    """The file of the repository that a page's link leads to; a folder stands for the newest page in it."""
    target = (page.parent / link).resolve()
    if target.is_dir():
        target = max(target.glob("*.md"), default=target)
    return target if target.is_file() and target.is_relative_to(REPOSITORY) else None


def place_of(target: Path) -> str:
    """Where a file of the repository is in the site."""
    return target.relative_to(DOCS if target.is_relative_to(DOCS) else REPOSITORY).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that they link to in turn."""
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = find(link, page)
            if target and files.get_file_from_path(place_of(target)) is None:
                files.append(File.generated(config, place_of(target), abs_src_path=str(target)))
                pages += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files as they lie in the site."""
    source, folder = Path(page.file.abs_src_path or ""), posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = find(link[0], source)
        return posixpath.relpath(place_of(target), folder or ".") if target else link[0]

    return LINK.sub(rewritten, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """TeX to MathML: blocks of the language `math`, and inline code between dollars."""
    content = BLOCK.sub(lambda found: f'<div class="math">{to_mathml(found[1], "block")}</div>', content)
    return INLINE.sub(lambda found: to_mathml(found[1], "inline"), content)


def to_mathml(tex: str, display: str) -> str:
    """`tex` is HTML-escaped."""
    return convert(html.unescape(tex).strip(), display=display)

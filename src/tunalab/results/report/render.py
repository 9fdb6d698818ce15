"""A report as Markdown, and as one HTML page with everything inside it: no network, no script."""

from base64 import b64encode

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from tunalab.results.report.document import Report
from tunalab.results.samples import png

# What records say is text: no HTML, and no image or link that would ask somebody else's server.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])


def to_markdown(report: Report) -> str:
    return _environment().get_template("report.md.j2").render(report=report)


def to_html(report: Report) -> str:
    return _environment().get_template("report.html.j2").render(report=report)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tunalab.results.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = lambda text: Markup(_MARKDOWN.render(text))
    environment.filters["data_uri"] = _data_uri
    environment.filters["png"] = png
    return environment


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"

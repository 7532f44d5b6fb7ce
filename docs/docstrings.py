"""How the site reads docstrings: their `>>>` examples and Keras's own sections.

A Griffe extension that mkdocs.yml names. The parser knows the sections of Google's
style alone; "Example" becomes its "Examples", and the others a title and their text.
Public names between backticks become links.
"""

import pathlib
import re
import textwrap

import griffe

TITLES = "Call arguments|Input shape|Output shape|Returns|References"
SECTION = re.compile(rf"^({TITLES}):\n((?:(?: {{4}}.*)?(?:\n|$))+)", re.M)
EXAMPLE = re.compile(r"^Example:\n\n((?:(?:>>>|\.\.\.|[^\s`]).*(?:\n|$))+)", re.M)
ARGUMENT = re.compile(r"^(\w+): ", re.M)
NAME = re.compile(r"`(keras_lkca\.[\w.]+)`")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def _section(match):
    title, text = match[1], textwrap.dedent(match[2]).strip("\n")
    if title == "Call arguments":
        text = ARGUMENT.sub(r"- **`\1`**: ", text)
    return f"**{title}:**\n\n{text}\n\n"


def _example(match):
    return "Examples:\n" + textwrap.indent(match[1], "    ")


def _link(match):
    name = path = match[1]
    if ROOT.joinpath(*name.split(".")).with_suffix(".py").exists():
        path += "." + name.rpartition(".")[2]  # the function, not its file
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'


class Docstrings(griffe.Extension):
    """Rewrites the docstrings before they are parsed."""

    def on_object(self, *, obj, **kwargs):
        """Rewrite the docstring of one object."""
        if obj.docstring:
            text = EXAMPLE.sub(_example, obj.docstring.value)
            obj.docstring.value = NAME.sub(_link, SECTION.sub(_section, text))

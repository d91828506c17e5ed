"""Writes docs/cli.md from the commands themselves: `python scripts/cli_docs.py`; `--check` only compares."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from foretell.cli.main import VERBS, load_verb

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# The command line

Written by `make docs` from the commands' own help; do not edit. `foretell VERB --help` shows the same.
Exit codes: 0 done, 1 refused or failed (one line on standard error says why; `foretell --debug VERB …` shows the
traceback), 2 wrong usage. `FORETELL_HOME` and `FORETELL_DATABASE` stand for `--store` and `--database`.
"""


def document() -> str:
    """The whole page."""
    lines = [HEAD, "| verb | what it does |", "| --- | --- |"]
    lines += [f"| [`{name}`](#foretell-{name.replace(' ', '-')}) | {summary} |" for name, summary in VERBS.items()]
    return "\n".join([*lines, *(section(name) for name in VERBS)]) + "\n"


def section(name: str) -> str:
    """One verb: usage, what it says, its arguments and options."""
    command = load_verb(name)
    hints = get_type_hints(importlib.import_module(f"foretell.cli.{name.replace(' ', '_')}").run)
    words = [f"\n## foretell {name}\n"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join(["foretell", name, *(metavar(p) for p in arguments), "[OPTIONS]"])
    words.append(f"    {usage}\n")
    words.append(prose(inspect.cleandoc(command.help or "")))
    if arguments or options:
        words += ["| | |", "| --- | --- |"]
    words += [f"| `{escape(metavar(p))}` | {escape(p.help)} |" for p in arguments]
    words += [f"| {flags(p, hints[p.name])} | {escape(p.help)}{default(p)} |" for p in options]
    return "\n".join(words)


def metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def flags(parameter: Any, annotation: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if is_flag(parameter) else f"{names} `{parameter.metavar or kind(annotation)}`"


def is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def kind(annotation: Any) -> str:
    """The word for a value: the choices of a Literal, N for whole numbers, X for others."""
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    if get_origin(annotation) is Literal:
        return "/".join(arms)
    plain = arms[0] if arms else annotation
    return {int: "N", float: "X"}.get(plain, "TEXT")


def default(parameter: Any) -> str:
    shown = parameter.show_default
    if isinstance(shown, str):
        return f" Default: {shown}."
    value = parameter.default
    if shown is False or is_flag(parameter) or value is None or value == "" or callable(value):
        return ""
    return f" Default: {value}."


def prose(text: str) -> str:
    """Help as Markdown: what follows a line of \\b keeps its lines, as code."""
    parts = []
    for block in re.split(r"\n\s*\n", text):
        if block.startswith("\b"):
            title, *examples = block.lstrip("\b\n").splitlines()
            parts.append(f"{title}\n\n" + "\n".join(f"    {line.strip()}" for line in examples))
        else:
            parts.append(" ".join(block.split()))
    return "\n\n".join(parts) + "\n"


def escape(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def main() -> int:
    page = document()
    if "--check" in sys.argv:
        fresh = TARGET.exists() and TARGET.read_text() == page
        print("docs/cli.md is up to date" if fresh else "docs/cli.md is stale: run make docs")
        return 0 if fresh else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the docs site takes from the code and from the other folders, so that nothing is written twice.

Pages of `docs/` say `{{ name }}` where a table of `TABLES` goes. The pages of `environments()` are class docstrings.
Markdown files of other folders (`INCLUDED`) are pages under their own paths, and what a page links to in the
repository is in the site too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from gymnasium.envs.registration import load_env_creator, registry
from msgspec import Struct
from msgspec.structs import fields

from l4s_gym import markdown, schema
from l4s_gym.evaluation import export
from l4s_gym.sim import disciplines, layout, scenario

ROOT: Final = Path(__file__).resolve().parents[1]
INCLUDED: Final = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "agents/**/*.md", "benchmarks/**/*.md", "datasets/**/*.md"),
    *("examples/*/*.md", "kernel/**/*.md"),
)
LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
Rows = Iterable[Sequence[Any]]


def table(head: str, rows: Rows) -> str:
    """A Markdown table."""
    return "\n".join(markdown.table(head.split(" | "), rows))


def attributes(of: Any) -> dict[str, str]:
    """What the section `Attributes` of a class docstring says of each."""
    section = inspect.cleandoc(of.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in found}


def options(of: type[Struct]) -> str:
    """The fields of a structure with their words and defaults."""
    words = attributes(of)
    rows = []
    for field in fields(of):
        default = field.default if isinstance(field.default, (bool, int, float, str, tuple, type(None))) else "-"
        shown = f"`{default:.6g}`" if isinstance(default, float) else f"`{default!r}`"
        rows.append((f"`{field.name}`", "-" if default == "-" else shown, words.get(field.name, "")))
    return table("field | default | meaning", rows)


def environments() -> dict[str, str]:
    """Id of each environment -> its page, the docstring of its class; a native vector version has a section of it."""
    pages = {}
    for name, spec in registry.items():
        if name.startswith("L4S-") and spec.entry_point:
            page = inspect.cleandoc(load_env_creator(spec.entry_point).__doc__ or "")
            make = f'```python\nimport gymnasium as gym\n\nenv = gym.make("l4s_gym:{name}"'
            needs = {"log": 'log="run.log"'}  # the only argument that an environment cannot do without
            required = [needs[each] for each in required_arguments(spec.entry_point)]
            text = f"# {name}\n\n{make}{''.join(', ' + each for each in required)})\n```\n\n{page}\n"
            if spec.vector_entry_point:
                vector = inspect.cleandoc(load_env_creator(spec.vector_entry_point).__doc__ or "")
                call = f'gym.make_vec("l4s_gym:{name}", num_envs=64, vectorization_mode="vector_entry_point")'
                text += f"\n## Vector version\n\n```python\nimport gymnasium as gym\n\nenvs = {call}\n```\n\n{vector}\n"
            pages[name] = text
    return pages


def required_arguments(entry_point: Any) -> list[str]:
    """Names of the arguments of an environment that have no default."""
    parameters = inspect.signature(load_env_creator(entry_point)).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def environment_list() -> str:
    """The environments, each with the first sentences of its page."""
    rows = []
    for name, page in environments().items():
        first = page.partition("## Description\n\n")[2].split("\n\n")[0].replace("\n", " ")
        rows.append((f"[`{name}`](environments/{name}.md)", first.split(". ")[0].rstrip(".") + "."))
    return table("id | what it is", rows)


def scenarios() -> str:
    """The scenarios that ship."""
    rows = []
    in_order = sorted(scenario.names(), key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(3), name))
    for name in sorted(in_order, key=lambda name: name.startswith("grid-")):
        s = scenario.load(name)
        rate = f"trace `{s.link.trace}`" if s.link.kind == "trace" else f"{s.link.rate_mbps:g}"
        flows = ", ".join(f"{each.count} {each.kind}" for each in s.sources)
        rows.append((f"`{name}`", ", ".join(scenario.suites_of(name)) or "-", rate, flows, s.description))
    return table("name | suites | Mbit/s | flows | description", rows)


def state(rows: Rows) -> str:
    """Fields of a record of the simulator."""
    return table("field | type | unit | meaning", ((f"`{a}`", f"`{b}`", c, d) for a, b, c, d in rows))


def discipline_list() -> str:
    """Every discipline that ships: what it is, its options, its state."""
    parts = []
    for each in disciplines.BUILT_IN:
        parts.append(f"## `{each.name}`\n\n{each.title[0].upper()}{each.title[1:]}.")
        if fields(each.options):
            parts.append(f"Options, in the table `[options.{each.name}]` of a scenario:\n\n{options(each.options)}")
        for whose, rows in (("environment", each.records.env_rows), ("queue", each.records.queue_rows)):
            if rows:
                parts.append(f'??? note "State of each {whose}"\n' + textwrap.indent(state(rows), "    "))
    return "\n\n".join(parts)


def congestion_list() -> str:
    """The congestion controls that ship, each with the first paragraph of its module."""
    rows = []
    for name in layout.CCS[1:]:
        own = importlib.util.find_spec(f"l4s_gym.sim.{name}")
        module = importlib.import_module(f"l4s_gym.sim.{name}" if own else "l4s_gym.sim.congestion")
        rows.append((f"`{name}`", (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")))
    return table("kind | rules", rows)


def state_list() -> str:
    """The records of the simulator: rows of name, type, unit and words, as the source has them."""
    parts = []
    for node in ast.parse(inspect.getsource(layout)).body:
        names = [t.id for t in getattr(node, "targets", [getattr(node, "target", None)]) if isinstance(t, ast.Name)]
        rows = [
            (tuple_.lineno, tuple_.col_offset, [each.value for each in tuple_.elts if isinstance(each, ast.Constant)])
            for tuple_ in ast.walk(node)
            if isinstance(tuple_, ast.Tuple) and len(tuple_.elts) == 4
        ]
        found = [row for *_, row in sorted(rows) if len(row) == 4 and all(isinstance(cell, str) for cell in row)]
        if names and found:
            parts.append(f"## {names[0].removesuffix('_ROWS')}\n\n{state(found)}")
    return "\n\n".join(parts)


def examples() -> str:
    """The programs in `examples/`: what each is, and its text."""
    parts = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        shown = f'??? example "examples/{path.name}"\n\n    ```{{ .python .no-run }}\n'
        parts.append(f"## `{path.name}`\n\n{first}\n\n{shown}{textwrap.indent(text, '    ')}    ```")
    return "\n\n".join(parts)


def series_columns() -> str:
    """The columns of `simulate --series`."""
    rows = [(f"`{name}`", what) for name, (what, _) in export.STEP.items()]
    rows += [(f"`c_{name}`, `l_{name}`", what) for name, (what, _) in export.CLASS.items()]
    rows += [(f"`FLOW_{name}`, such as `cubic0_{name}`", what) for name, what in export.FLOW.items()]
    return table("column | meaning", rows)


def objective() -> str:
    """The latest run of the study of the rewards: scores of each discipline, in the order by `fair`."""
    run = json.loads((ROOT / "benchmarks/studies/objective/results/objective.json").read_text())[-1]
    scores, uneven = run["scores"], run["uneven"]
    rows = [
        [f"`{who}`", *(f"{score:.1f}" for score in scores[who].values()), f"{uneven[who]:.2f}"]
        for who in sorted(scores, key=lambda who: float(scores[who]["fair"]))
    ]
    return table(" | ".join(["agent", *next(iter(scores.values())), "uneven"]), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "environments": environment_list,
    "scenarios": scenarios,
    "scenario_fields": lambda: options(scenario.Scenario),
    "link_fields": lambda: options(scenario.Link),
    "source_fields": lambda: options(scenario.Source),
    "disciplines": discipline_list,
    "congestion_controls": congestion_list,
    "record": schema.markdown_table,
    "state": state_list,
    "examples": examples,
    "series": series_columns,
    "objective": objective,
    "packets": lambda: table("column | meaning", ((f"`{name}`", what) for name, what in export.PACKET.items())),
}


def included() -> list[str]:
    """Markdown files of the other folders, by their paths in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in INCLUDED for path in ROOT.glob(pattern))


def expand(text: str) -> str:
    """A page with its tables."""
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda match: TABLES[match[1]](), text, flags=re.M)


def for_python_markdown(text: str) -> str:
    """GitHub takes a list or table right after a line of text; Python-Markdown wants an empty line between."""
    out: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        starts = re.match(r"(\d+\. |[-*] |\|)", line)
        if starts and not fenced and out and out[-1].strip() and not re.match(r"(\d+\. |[-*] |\||\s)", out[-1]):
            out.append("")
        out.append(line)
    return "\n".join(out)


def links(text: str) -> Iterator[str]:
    """Targets of the links to files, outside code."""
    for match in LINK.finditer(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)):
        target = match[3].partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:"):
            yield target


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix("docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, those of other folders, and what they link to."""
    from mkdocs.structure.files import File

    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for path in included():
        texts[path] = (ROOT / path).read_text()
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for name, text in environments().items():
        files.append(File.generated(config, f"environments/{name}.md", content=text))
    for path, text in texts.items():
        for target in links(text):
            linked = os.path.normpath(os.path.join(os.path.dirname(path), target))
            if (ROOT / linked).is_file() and files.get_file_from_path(place(linked)) is None:
                files.append(File.generated(config, place(linked), abs_src_path=str(ROOT / linked)))
    config.nav = fill(config.nav, sorted(file.src_uri for file in files.documentation_pages()))
    return files


def fill(nav: Any, pages: list[str]) -> Any:
    """The navigation, each pattern replaced by the pages that nothing else names."""
    named = set(re.findall(r"'([^'*]+\.md)'", str(nav)))

    def filled(items: list[Any]) -> list[Any]:
        out: list[Any] = []
        for item in items:
            if isinstance(item, dict):
                out.append({title: filled(part) if isinstance(part, list) else part for title, part in item.items()})
            elif "*" in item:
                out += [page for page in pages if fnmatch(page, item) and page not in named]
            else:
                out.append(item)
        return out

    return filled(nav)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the tables; links between files of the repository become links of the site."""
    uri = page.file.src_uri
    path = uri if uri in included() else f"docs/{uri}"
    if uri.endswith("leaderboard.md"):
        page.meta["hide"] = ["toc"]  # room for a wide table

    def relinked(match: re.Match[str]) -> str:
        target, _, anchor = match[3].partition("#")
        if not target or "://" in target:
            return match[0]
        linked = place(os.path.normpath(os.path.join(os.path.dirname(path), target)))
        if files.get_file_from_path(linked) is None and not linked.startswith("environments/"):
            return match[2] if (ROOT / linked).exists() else match[0]  # a folder has no page
        relative = os.path.relpath(linked, os.path.dirname(uri) or ".")
        return f"{match[1]}[{match[2]}]({relative}{'#' + anchor if anchor else ''})"

    return for_python_markdown(LINK.sub(relinked, expand(markdown)))

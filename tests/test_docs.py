"""The documents say what the program does: verbs, options, knobs with their defaults, commands, links."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from chatbaker.chat.terminal import COMMANDS
from chatbaker.cli import app
from chatbaker.recipe import (
    Clean,
    Dpo,
    Eval,
    Export,
    Filters,
    Judge,
    Model,
    Parallel,
    Pretrain,
    Recipe,
    Schedule,
    Section,
    Sft,
    SftSource,
    Slurm,
    Source,
    Tokenizer,
    load,
    parse,
    shipped_recipes,
)

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
CLI = typer.main.get_command(app)
VERBS = CLI.commands
RECIPE_VERBS = [name for name, verb in VERBS.items() if {"recipe", "overrides"} <= {p.name for p in verb.params}]

ids = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=ids)
every_verb = pytest.mark.parametrize("verb", VERBS)


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """The arguments of every `chatbaker ...` in the shell blocks and in the running text."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        for part in line.split(" | "):
            words = shlex.split(part, comments=True) if re.match(r"\s*(\.venv/bin/)?chatbaker\b", part) else []
            if len(words) > 2 or (len(words) == 2 and line in lines):  # in running text `chatbaker sft` is a name
                yield words[1:]


def knobs(text):
    """{key: default as written} of the tables whose rows begin with `key`."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))


@every_verb
def test_a_verb_has_a_page_and_is_in_both_readmes(verb):
    page = ROOT / "docs" / f"{verb}.md"
    assert page.is_file()
    assert read(page).startswith(f"# chatbaker {verb}\n")
    for readme in READMES:
        assert f"[`chatbaker {verb}`](docs/{verb}.md)" in read(readme)


@every_verb
def test_a_page_names_the_options_of_its_verb(verb):
    text = read(ROOT / "docs" / f"{verb}.md") + read(ROOT / "docs" / "bake.md")  # --runs is told once
    for parameter in VERBS[verb].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in text or f" {option}" in text, option


def test_the_chat_page_has_the_commands_and_defaults():
    text = read(ROOT / "docs" / "chat.md")
    for command in COMMANDS:
        assert f"`/{command}" in text, command
    for parameter in VERBS["chat"].params:
        if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
            assert f"| `{parameter.opts[0]}` | `{parameter.default}` |" in text, parameter.name


@pytest.mark.parametrize(
    ("page", "sections"),
    [
        ("recipe", [Recipe, Model, Parallel]),
        ("clean", [Clean, Source, Filters, Slurm]),
        ("tokenizer", [Tokenizer]),
        ("pretrain", [Pretrain]),
        ("sft", [Sft, SftSource]),
        ("dpo", [Dpo]),
        ("export", [Export]),
        ("eval", [Eval]),
        ("judge", [Judge]),
    ],
)
def test_a_page_has_every_knob_of_its_section_with_its_default(page, sections):
    text = read(ROOT / "docs" / f"{page}.md")
    written = knobs(text)
    known = set()
    for section in sections:
        for key, field in section.model_fields.items():
            known.add(key)
            default = field.get_default()
            if section is Recipe and isinstance(default, Section):
                assert f"[{key}]" in text, key
            elif isinstance(default, Section):
                assert f"[{page}.{key}]" in text, key
            elif (
                section in (Sft, Dpo) and key in Schedule.model_fields and default == Schedule.model_fields[key].default
            ):
                assert f"`{key}`" in text, key  # told on the page of pretrain
            elif field.is_required():
                assert written[key] == "required", key
            elif default is None:
                assert written[key] == "none", key
            else:
                value = tomllib.loads(f"value = {written[key].strip('`')}")["value"]
                assert value == (list(default) if isinstance(default, tuple) else default), key
    assert set(written) <= known, "the page names a knob that does not exist"


@every_page
def test_commands_exist(page):
    for arguments in commands(read(page)):
        name, *rest = arguments
        assert name in VERBS, f"chatbaker {name}"
        with VERBS[name].make_context(name, list(rest)) as context:
            if name in RECIPE_VERBS:
                recipe = context.params["recipe"]
                load(recipe if recipe in shipped_recipes() else "tiny", context.params["overrides"] or [])


@every_page
def test_recipes_in_the_text_are_valid(page):
    for block in blocks(read(page), "toml"):
        parse(tomllib.loads(block), str(page))


@every_page
def test_relative_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(target), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings], link


@every_page
def test_no_path_of_somebodys_machine(page):
    found = re.search(r"(?<![\w.])/(home|root|Users|work|tmp|opt|mnt|srv)/", read(page))
    assert found is None, found


def test_the_architecture_names_every_room():
    text = read(ROOT / "docs" / "architecture.md")
    for path in (ROOT / "chatbaker").iterdir():
        if path.name == "__pycache__" or path.name.startswith("_") and path.suffix != ".py":
            continue
        name = f"{path.name}/" if path.is_dir() else path.name
        if path.suffix == ".py" or path.is_dir():
            assert f"`{name}`" in text, name


def test_constraints_pin_what_the_project_asks_for():
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", read(ROOT / "constraints.txt"), re.MULTILINE))
    assert not [pin for pin in pins.values() if "+" in pin], "a local version is not to be had elsewhere"
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    for requirement in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
        name = re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")
        assert name in pins, name

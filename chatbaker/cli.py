"""The command line: verbs, overrides, friendly errors. A stage is imported only when it runs; torch never is here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chatbaker import __version__
from chatbaker.errors import ChatBakerError
from chatbaker.stages import STAGES, Stage

app = typer.Typer(
    name="chatbaker",
    help="Bake a Korean-English chat model from raw text to a served assistant.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A .toml file, or tiny, mini, 1.3b.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as pretrain.lr=3e-4.")]
Runs = Annotated[str, typer.Option(help="Folder that holds the run folders.")]


def _stage(name: str, recipe_path: str, overrides: list[str] | None, runs: str, **options: Any) -> None:
    from chatbaker.recipe import load
    from chatbaker.rundir import RunDir
    from chatbaker.stages import execute, tune_allocator

    recipe = load(recipe_path, overrides or [])
    if STAGES[name].trains:
        tune_allocator()
    execute(STAGES[name], recipe, RunDir.of(recipe.name, runs), **options)


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Answer this and leave; without it, talk.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Run folder, Hugging Face folder, hub id or .gguf; default: the bundled model.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server instead of a local model.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.5,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    top_k: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 20,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, help="Over generated tokens.")] = 1.2,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="bf16, q8_0 or q4_0: how a Hugging Face folder is converted for the CPU.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Print candidate tokens, usage and speed as JSON.")] = False,
) -> None:
    """Talk with a model in the terminal."""
    from chatbaker.chat.terminal import run
    from chatbaker.infer.engine import Sampling

    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    status = run(
        question,
        model=model,
        url=url,
        device=device,
        system=system,
        sampling=sampling,
        quantize=quantize,
        debug=debug,
    )
    raise typer.Exit(status)


@app.command()
def new(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships: tiny, mini, 1.3b.")],
    path: Annotated[str, typer.Argument(help="The .toml file to write.")],
) -> None:
    """Copy a recipe, to make it yours."""
    from chatbaker.recipe import find

    source, target = find(recipe), Path(path)
    if target.exists():
        raise ChatBakerError("already there", str(target), "Give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{target}: edit it, then type: chatbaker bake {target}")


@app.command()
def bake(recipe: RecipePath, overrides: Overrides = None, runs: Runs = "runs") -> None:
    """Run every stage of a recipe, skipping what is done."""
    from chatbaker.bake import bake

    run = bake(recipe, overrides or [], runs)
    print(f"Baked. Talk to it: chatbaker chat --model {run.root}")


def _add_stage(stage: Stage) -> None:
    def command(recipe: RecipePath, overrides: Overrides = None, runs: Runs = "runs") -> None:
        _stage(stage.name, recipe, overrides, runs)

    command.__doc__ = stage.help
    app.command(stage.name)(command)


for _name in ("tokenizer", "pack", "pretrain"):
    _add_stage(STAGES[_name])


@app.command()
def clean(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = "runs",
    explain: Annotated[
        str | None, typer.Option(metavar="FILE:LINE", help="What each filter thinks of one document; no cleaning.")
    ] = None,
) -> None:
    """Read the sources, drop what is not wanted, keep count."""
    if explain is None:
        return _stage("clean", recipe, overrides, runs)
    from chatbaker.recipe import load
    from chatbaker.stages import code

    code(STAGES["clean"], "explain")(load(recipe, overrides or []), explain)


@app.command()
def sft(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = "runs",
    show_mask: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N samples' trained tokens; no training.")
    ] = 0,
) -> None:
    """Tune the base model on conversations; resumes by itself."""
    if not show_mask:
        return _stage("sft", recipe, overrides, runs)
    from chatbaker.recipe import load
    from chatbaker.rundir import RunDir
    from chatbaker.tokens.conversations import show

    loaded = load(recipe, overrides or [])
    show(loaded, RunDir.of(loaded.name, runs), show_mask)


@app.command()
def export(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = "runs",
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hugging Face hub.")] = None,
) -> None:
    """Write the Hugging Face folder, the GGUF files and the model card."""
    _stage("export", recipe, overrides, runs, push=push)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a ChatBakerError is one line on standard error and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except ChatBakerError as error:
        print(f"chatbaker: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print(f"chatbaker: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)

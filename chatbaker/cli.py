"""The command line: verbs, overrides, friendly errors. A stage is imported only when it runs; torch never is here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatbaker import __version__
from chatbaker.errors import ChatBakerError, missing_extra
from chatbaker.rundir import RunDir
from chatbaker.stages import STAGES, Stage, code, execute, tune_allocator

if TYPE_CHECKING:
    from chatbaker.recipe import Recipe

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
Slurm = Annotated[str | None, typer.Option(metavar="FILE", help="Write a batch script for Slurm there; no training.")]
ModelName = Annotated[
    str | None, typer.Option(help="Run folder, Hugging Face folder, hub id or .gguf; default: the bundled model.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


def _load(recipe_path: str, overrides: list[str] | None) -> Recipe:
    from chatbaker.recipe import load  # pydantic takes its time: the chat and --help go without

    return load(recipe_path, overrides or [])


def _stage(
    name: str, recipe_path: str, overrides: list[str] | None, runs: str, slurm: str | None = None, **options: Any
) -> None:
    stage, recipe = STAGES[name], _load(recipe_path, overrides)
    if slurm is not None:
        arguments = [recipe_path, *(overrides or []), "--runs", runs]
        return code(stage, "write_slurm_script", "chatbaker.train.launch")(Path(slurm), name, recipe, arguments)
    if stage.trains:
        tune_allocator()
    execute(stage, recipe, RunDir.of(recipe.name, runs), **options)


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Answer this and leave; without it, talk.")] = None,
    model: ModelName = None,
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server instead of a local model.")] = None,
    device: Device = "auto",
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

    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, max_new_tokens, seed)
    raise typer.Exit(run(question, model, url, device, system, sampling, quantize, debug))


@app.command()
def serve(
    model: ModelName = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 for other machines too; then set a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Asked of every client; better: CHATBAKER_API_KEY.")] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Answers at a time.")] = 4,
    ctx: Annotated[int | None, typer.Option(min=64, help="Tokens a slot; default: the model's, at most 4096.")] = None,
    device: Device = "auto",
    quantize: Annotated[
        str | None, typer.Option(help="How to convert a model folder: bf16, q8_0 or q4_0; default: q8_0.")
    ] = None,
) -> None:
    """Serve a model: an OpenAI-compatible API, and a web page to chat."""
    from chatbaker.chat.server import serve as start

    start(model, host, port, api_key, slots, ctx, device, quantize)


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
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; default: those of this machine.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Such as a100-80gb or h100; default: this machine's.")] = None,
    mfu: Annotated[float | None, typer.Option(min=0.001, max=1, help="Share of the card's rate reached.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="US dollars per GPU-hour.")] = None,
    ladder: Annotated[list[str] | None, typer.Option(metavar="RUN", help="A finished bake; three or more.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what pretraining will need: memory, days, money."""
    from chatbaker.plan import plan as answer

    folders = [Path(run) for run in ladder or ()]
    asked = {"gpus": gpus, "gpu": gpu, "mfu": mfu, "price": price}
    print(answer(_load(recipe, overrides), as_json, folders, **asked))


@app.command()
def bake(recipe: RecipePath, overrides: Overrides = None, runs: Runs = "runs") -> None:
    """Run every stage of a recipe, skipping what is done."""
    from chatbaker.bake import bake

    run = bake(recipe, overrides or [], runs)
    print(f"Baked. Talk to it: chatbaker chat --model {run.root}")


def _add_stage(stage: Stage) -> None:
    """A verb that runs its stage and no more; where it trains, Slurm can be asked to."""

    def prepare(recipe: RecipePath, overrides: Overrides = None, runs: Runs = "runs") -> None:
        _stage(stage.name, recipe, overrides, runs)

    def train(recipe: RecipePath, overrides: Overrides = None, runs: Runs = "runs", slurm: Slurm = None) -> None:
        _stage(stage.name, recipe, overrides, runs, slurm)

    app.command(stage.name, help=stage.help)(train if stage.trains else prepare)


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
    code(STAGES["clean"], "explain")(_load(recipe, overrides), explain)


@app.command()
def sft(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = "runs",
    show_mask: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N samples' trained tokens; no training.")
    ] = 0,
    slurm: Slurm = None,
) -> None:
    """Tune it on conversations; resumes by itself."""
    if not show_mask:
        return _stage("sft", recipe, overrides, runs, slurm)
    from chatbaker.tokens.conversations import show

    loaded = _load(recipe, overrides)
    show(loaded, RunDir.of(loaded.name, runs), show_mask)


_add_stage(STAGES["dpo"])


@app.command()
def export(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: Runs = "runs",
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload to the Hugging Face hub.")] = None,
) -> None:
    """Write the Hugging Face folder, GGUF files and model card."""
    _stage("export", recipe, overrides, runs, push=push)


OtherModel = Annotated[
    str | None, typer.Option(help="Instead of a recipe's: run folder, Hugging Face folder, hub id or .gguf.")
]
OtherUrl = Annotated[
    str | None, typer.Option(help="Instead of a recipe's: a model behind an OpenAI-compatible server.")
]
OptionalRecipe = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A .toml file, or tiny, mini, 1.3b.")]


def _examine(
    name: str,
    recipe_path: str | None,
    overrides: list[str],
    runs: str,
    model: str | None,
    url: str | None,
    **options: Any,
) -> None:
    """Run eval or judge: as a stage of a recipe's run, or over any model, into a run folder of the model's name."""
    if recipe_path and "=" in recipe_path:
        overrides, recipe_path = [recipe_path, *overrides], None
    if recipe_path and (model or url):
        raise ChatBakerError("a recipe and a model were given", hint="Give one: RECIPE, or --model or --url")
    if recipe_path and not options.get("answers_only"):  # half of a stage gets no stamp
        return _stage(name, recipe_path, overrides, runs, **options)
    if not (recipe_path or model or url):
        raise ChatBakerError("nothing to examine", hint=f"Type: chatbaker {name} RECIPE, or chatbaker {name} --model X")
    from chatbaker.recipe import adhoc

    function = code(STAGES[name])
    recipe = _load(recipe_path, overrides) if recipe_path else adhoc(str(model or url), overrides)
    run = RunDir.of(recipe.name, runs)
    if model and Path(model, "recipe.toml").is_file():
        run = RunDir(Path(model))
    with run.lock():
        function(recipe, run, model=model, url=url, **options)


@app.command("eval")
def evaluate(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    runs: Runs = "runs",
    model: OtherModel = None,
    url: OtherUrl = None,
    device: Device = "auto",
    suite: Annotated[str | None, typer.Option(help="ko, en, more, chat, several with commas, or all.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, with commas.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Local copies of the sets; else the hub.")] = None,
    text: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Measure its bits per byte.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items a task.")] = None,
) -> None:
    """Zero-shot tasks, bits per byte, register, stop and repetition rate."""
    suites = _words(suite and suite.replace("all", "ko,en,more,chat"))
    given = {"suites": suites, "tasks": _words(tasks), "data": data, "texts": text, "limit": limit}
    knobs = [f"eval.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value]
    _examine("eval", recipe, [*(overrides or []), *knobs], runs, model, url, device=device)


@app.command()
def judge(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    runs: Runs = "runs",
    model: OtherModel = None,
    url: OtherUrl = None,
    device: Device = "auto",
    answers_only: Annotated[bool, typer.Option("--answers-only", help="Answer the prompts; judge nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before requests that may cost money.")] = False,
) -> None:
    """Answer a set of prompts and let another model score the answers."""
    _examine("judge", recipe, overrides or [], runs, model, url, device=device, answers_only=answers_only, yes=yes)


@app.command()
def report(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; the first is the report's own.")],
) -> None:
    """Write one page, index.html, with every number and picture of a run."""
    try:
        from chatbaker.report.page import write_report
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "matplotlib", "report") from None
    print(write_report([Path(one) for one in run]))


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


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

"""Every knob of a bake: typed, frozen, documented, with its default. One TOML file, sections = stages.

`load(path, overrides)` reads the file, applies `section.key=value` overrides and checks everything strictly: an
unknown key is an error with a suggestion, a bad value names its key. Relative data paths start at `data_root`.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chatbaker.errors import ChatBakerError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    free: ClassVar[set[str]] = set()
    """Knobs that say where the work is done, not what comes out."""

    def decisive(self) -> dict[str, Any]:
        """The knobs that decide the result, as plain data."""
        return self.model_dump(mode="json", exclude=self.free)


class Source(Section):
    """One stream of documents. path: glob below data_root, or own text: `made:ko`, `made:en`, `made:ko:small` ..."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    path: str
    language: Literal["ko", "en"]
    licence: str = "unstated"
    origin: str = ""
    """Who made the text or where it is from, for the model card."""
    limit: Positive | None = None
    """Documents to take at most; needed for `made:` sources, which do not end by themselves."""
    column: str = "text"
    """The key (JSON lines) or column (parquet) that holds a document's text."""


class Filters(Section):
    """Limits, each with the reason it drops a document for. Up to 1, shares; 0 or 1 switches a filter off."""

    min_chars: int = 20
    """Shorter documents are dropped (too_short)."""
    judged_from: Positive = 200
    """Characters from which shares are judged; below only length, language, spam and boilerplate are."""
    boilerplate: Fraction = 0.6
    """Most of the text that menus, notices, bylines and the like may take up (boilerplate)."""
    own_language: Fraction = 0.1
    """Least share of Hangul, or of Latin letters in what the identifier takes for English (wrong_language)."""
    symbols: Fraction = 0.35
    """Most of the text, white space apart, that neither letters, digits nor common marks may be (symbols)."""
    digits: Fraction = 0.45
    """Most of the text, white space apart, that digits may be (digits)."""
    word_length: Rate = 15.0
    """Most characters a word may have on average (word_length)."""
    repeated_characters: Fraction = 0.35
    """Most characters that may be the same as the one before (repeated_characters)."""
    grammar: Annotated[float, Field(ge=0, le=2)] = 0.35
    """Least share of Korean words with a particle or ending, plus that of Hangul in sentences that end (keywords)."""
    function_words: Fraction = 0.05
    """Least share of English words such as "the" and "of" (keywords)."""
    repeated_lines: Fraction = 0.45
    """Most of the text in lines that stood before (repeated_lines)."""
    repeated_phrases: Fraction = 0.45
    """Most of the text in runs of 32 characters that stand elsewhere too (repeated_phrases)."""
    spam: Fraction = 0.05
    """Most letters that words of advertising for gambling, sex and pills may take up (spam)."""


class Slurm(Section):
    """What clean.engine = "slurm" asks of the cluster, for each task."""

    partition: str = "cpu"
    qos: str = "normal"
    time: str = "12:00:00"
    memory_gb: Positive = 4
    setup: str = ""
    """A shell command that each job runs first, such as `source venv/bin/activate`."""


class Clean(Section):
    free: ClassVar[set[str]] = {"engine", "workers", "slurm"}
    sources: tuple[Source, ...] = ()
    filters: Filters = Filters()
    personal: bool = True
    """Mask e-mail addresses, phone, registration, card and account numbers."""
    dedup: Literal["minhash", "exact", "none"] = "minhash"
    """exact: drop documents seen before. minhash: near-duplicates too."""
    similarity: Fraction = 0.6
    """Share of common character n-grams (Jaccard) from which minhash calls two documents the same."""
    paragraph_repeats: Annotated[int, Field(ge=0)] = 10
    """A paragraph found in more documents than this stays only in the first; 0: paragraphs are left alone."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets, as globs of folders or files below data_root: documents that hold an item are dropped."""
    engine: Literal["local", "ray", "slurm"] = "local"
    workers: Annotated[int, Field(ge=0)] = 0
    """Tasks at a time; 0: one for each core (local), no bound (ray, slurm)."""
    slurm: Slurm = Slurm()
    validation: Fraction = 0.01
    """Share of each source's documents held out for validation, chosen by a hash of the text."""
    strict: bool = True
    """Stop at the first line or file that cannot be read; false: report it, count it and go on."""

    @model_validator(mode="after")
    def _names(self) -> Clean:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same name")
        return self


class Tokenizer(Section):
    vocab_size: Annotated[int, Field(ge=259, le=65_536)] = 16_384
    """Entries, special tokens included. At most 65,536, so that a token fits two bytes."""
    sample_docs: Positive = 10_000_000
    """Documents to train on, shared among the sources as `balance` says."""
    balance: dict[str, float] = {}
    """Share of the sampled text (in bytes) per language, as {ko = 0.5, en = 0.5}; empty: as the data is."""


class Model(Section):
    layers: Positive = 6
    heads: Positive = 4
    kv_heads: Positive = 4
    dim: Positive = 256
    ffn_dim: Positive = 704
    seq_len: Positive = 512
    tied: bool = True
    """The output head shares the embedding's weights."""
    rope_theta: Rate = 10_000.0
    norm_eps: Rate = 1e-5

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError("dim must be an even multiple of heads")
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        return self


class Schedule(Section):
    """What pretrain and sft share: batch, optimizer, precision, how often to look and to save."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalized momentum for the matrices of the blocks, AdamW for the rest."""
    lr: Rate = 4e-4
    """Peak rate of AdamW (embedding, head and norms under muon)."""
    muon_lr: Rate = 0.02
    """Peak rate of Muon, for matrices only."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    warmup: Fraction = 0.01
    """Share of the steps in which the rate climbs."""
    decay: Literal["cosine", "wsd"] = "cosine"
    """cosine: from the peak to `final_lr`. wsd: constant, then linear over the last `decay_share` of the steps."""
    decay_share: Fraction = 0.4
    final_lr: Fraction = 0.1
    """Last rate as a share of the peak."""
    micro_batch: Positive = 16
    """Sequences in one forward pass; what is left of the batch is accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    """fp8: bf16, and the blocks' matrices multiply in FP8; never chosen by itself."""
    compile: bool = True
    """Compile each block where a C++ compiler is found."""
    recompute: bool = False
    """Forget a block's activations and compute them again in the backward pass: less memory, a third more work."""
    eval_every: Positive = 200
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    log_every: Positive = 10
    spike: Annotated[float, Field(ge=0)] = 10.0
    """Deviations above the median of the last steps from which a loss or gradient norm is a fault; 0: never."""
    faults: Annotated[int, Field(ge=0)] = 20
    """Steps of 1,000 skipped for a fault (not finite, or a spike) before training gives up."""


class Pretrain(Schedule):
    tokens: Positive = 20_000_000
    batch_tokens: Positive = 16_384
    """Tokens of one optimizer step over all devices."""
    mix: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight per source name or language; empty: every source by its size."""
    prompts: tuple[str, ...] = ("대한민국의 수도는", "옛날 옛적에", "The capital of France is", "Once upon a time")
    """Continued at every evaluation, so that a person sees what the model says."""


class SftSource(Section):
    """Conversations in any known format. path: glob below data_root, `hub:ORG/NAME/GLOB` or `made:...`."""

    path: str
    licence: str = "unstated"
    origin: str = ""
    limit: Positive | None = None
    weight: Annotated[Rate, Field(validation_alias=AliasChoices("weight", "repeat"))] = 1.0
    """Times that a conversation counts in one epoch; 0.5: a half of them. (Its name in older recipes is `repeat`.)"""
    languages: tuple[str, ...] = ()
    """Only records whose `lang` is one of these; empty: all."""
    strict: bool = True
    """Stop at the first bad record; false: count it and go on."""


class Sft(Schedule):
    sources: tuple[SftSource, ...] = ()
    epochs: Positive = 3
    batch_size: Positive = 16
    """Packed rows of seq_len tokens in one optimizer step."""
    lr: Rate = 2e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Fraction = 0.03
    validation: Fraction = 0.02
    prompts: tuple[str, ...] = ("안녕하세요?", "너는 누구야?", "Hello!", "What can you do?")
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Train only low-rank adapters of the blocks' matrices, merged at the end; 0: all weights."""
    lora_alpha: Rate = 16.0
    """An adapter counts lora_alpha / lora_rank times."""


class Dpo(Sft):
    """Tuning on pairs of answers. Pairs told apart have next to no gradient: the next would look like a spike."""

    epochs: Positive = 1
    lr: Rate = 1e-6
    spike: Annotated[float, Field(ge=0)] = 0.0
    beta: Rate = 0.1
    """How dear it is to depart from the model that the stage starts from."""


class Parallel(Section):
    """How the work is spread. One process on a CPU needs nothing here."""

    free: ClassVar[set[str]] = {"processes", "shard", "restarts", "nodes"}
    threads: int = 0
    """CPU threads; 0 takes what PyTorch chooses."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Training processes on each machine; 0: one for each visible GPU, else one."""
    shard: Annotated[int, Field(ge=0)] = 0
    """Processes that share one copy of weights and optimizer; 0: all. Groups of that size hold a copy each (HSDP)."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """New starts of all processes, from the newest checkpoint, after one was lost."""
    nodes: Positive = 1
    """Machines that a generated Slurm script asks for."""


class Export(Section):
    gguf: tuple[Literal["bf16", "q8_0", "q4_0"], ...] = ("q8_0",)
    title: str = ""
    licence: str = "apache-2.0"


class Eval(Section):
    free: ClassVar[set[str]] = {"batch_size"}
    suites: tuple[Literal["ko", "en", "more", "chat"], ...] = ("ko", "en", "chat")
    """ko, en, more: zero-shot tasks, of the base model. chat: register, stop and repetition rate, of the chat model."""
    tasks: tuple[str, ...] = ()
    """Only these of the suites' tasks; empty: all."""
    data: str = ""
    """Folder below data_root with local copies of the sets, one folder a task; empty: the Hugging Face hub."""
    limit: Positive | None = None
    """Items a task to take at most."""
    texts: tuple[str, ...] = ()
    """Text files whose bits per byte are measured, as globs below data_root; empty: the run's held-out documents."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows in one forward pass; 0: as many as memory and speed allow."""


class Judge(Section):
    free: ClassVar[set[str]] = {"concurrency"}
    prompts: str = ""
    """CSV file `id,question,category,task`; empty: the 121 prompts that come with the project."""
    language: Literal["ko", "en"] = "ko"
    """Which twin of the project's own prompts is asked, and in which language the judge is instructed."""
    url: str = ""
    """The judge: an OpenAI-compatible server. Its key is CHATBAKER_JUDGE_KEY or OPENAI_API_KEY."""
    model: str = ""
    """The judge's name on that server; empty: the only model there."""
    against: tuple[str, ...] = ()
    """Run folders whose answers are compared with this run's, pair by pair."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """US dollars per million prompt tokens, for the estimate."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """US dollars per million answer tokens."""
    concurrency: Positive = 4
    """Requests under way at a time."""
    temperature: Annotated[float, Field(ge=0)] = 0.5
    """Of the answers that are judged; top-p, top-k and repetition penalty are those of the chat."""
    max_new_tokens: Positive = 512


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    seed: int = 1234
    data_root: str = "."
    clean: Clean = Clean()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    pretrain: Pretrain = Pretrain()
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    parallel: Parallel = Parallel()
    export: Export = Export()
    eval: Eval = Eval()
    judge: Judge = Judge()

    @field_validator("data_root")
    @classmethod
    def _home(cls, value: str) -> str:
        return str(Path(value).expanduser())  # after data_root= a shell leaves ~ as it is


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides such as `pretrain.lr=3e-4`.

    Raises ChatBakerError for a missing file, broken TOML, an unknown key (with a suggestion) or a bad value.
    """
    path = find(str(path))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChatBakerError(f"not valid TOML: {error}", str(path)) from None
    for override in overrides:
        _apply(data, override)
    return parse(data, str(path))


def adhoc(model: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that only examines a model which no recipe here made, named after it."""
    words = [part for part in re.split(r"[\\/]", model) if part not in ("", ".", "..")]
    data: dict[str, Any] = {"name": re.sub(r"[^\w.-]+", "-", "-".join(words[-2:])).strip("-.") or "model"}
    for override in overrides:
        _apply(data, override)
    return parse(data, "the command line")


def parse(data: dict[str, Any], where: str) -> Recipe:
    """Check plain data against the recipe's types; `where` names it in errors."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _explain(first["type"], tuple(first["loc"]), first["msg"], where) from None


def find(name: str) -> Path:
    """A recipe by path, or by the bare name of one that ships with the package (`tiny`, `mini`, `1.3b`)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if path.name == name and name.removesuffix(".toml") in shipped:
        return shipped[name.removesuffix(".toml")]
    raise ChatBakerError(
        f"no recipe {name!r}",
        hint=f"Give a .toml file, or one of: {', '.join(sorted(shipped))} ('chatbaker new' copies one)",
    )


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the project: beside the package in a clone, inside it in a wheel."""
    here = Path(__file__).parent
    folder = here / "_recipes" if (here / "_recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in folder.glob("*.toml")}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML text that `load` reads back to an equal recipe."""
    return "\n".join(_toml(recipe.model_dump(mode="json", exclude_none=True))) + "\n"


def _toml(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_table(value)}
    for key, value in table.items():
        if key not in nested:
            yield f"{key} = {_value(value)}"
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, list):
            for item in value:
                yield from ("", f"[[{name}]]", *_toml(item, name + "."))
        else:
            yield from ("", f"[{name}]", *_toml(value, name + "."))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _apply(data: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ChatBakerError(f"cannot read the override {override!r}", hint="Write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ChatBakerError(f"{parent!r} in the override {override!r} is not a section")
    data[last] = value


def _explain(kind: str, loc: tuple[int | str, ...], message: str, where: str) -> ChatBakerError:
    key = ".".join(str(part) for part in loc)
    if kind != "extra_forbidden":
        return ChatBakerError(f"{key}: {message[0].lower()}{message[1:]}" if key else message, where)
    model: Any = Recipe
    for part in loc[:-1]:
        if isinstance(part, str):
            model = _inner(model.model_fields[part].annotation)
    close = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1, cutoff=0.5)
    known = f"Did you mean {close[0]!r}?" if close else f"Known here: {', '.join(model.model_fields)}"
    return ChatBakerError(f"unknown key {key!r}", where, known)


def _inner(annotation: Any) -> Any:
    return annotation.__args__[0] if hasattr(annotation, "__args__") else annotation

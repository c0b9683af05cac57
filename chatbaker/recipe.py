"""Every knob of a bake: typed, frozen, explained, with its default. One TOML file, sections = stages.

`load` applies overrides and checks everything strictly: an unknown key is an error with a suggestion, a bad value names
its key. Relative data paths start at `data_root`. The pages in docs/ say more of each knob.
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

Name = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)  # name=2024
    free: ClassVar[set[str]] = set()  # knobs that say where the work is done, not what comes out

    def decisive(self) -> dict[str, Any]:
        """The knobs that decide the result, as plain data."""
        return self.model_dump(mode="json", exclude=self.free)


class Source(Section):
    """One stream of documents."""

    name: Name
    path: str  # glob below data_root, or text of our own: `made:ko`, `made:en`, `made:ko:small` ...
    language: Literal["ko", "en"]
    licence: str = "unstated"
    origin: str = ""  # who made the text or where it is from, for the model card
    limit: Positive | None = None  # documents to take at most; needed for `made:` sources, which have no end
    column: str = "text"  # the key (JSON lines) or column (parquet) that holds a document's text


class Filters(Section):
    """Limits, each with the reason it drops a document for. Up to 1, shares; 0 or 1 switches a filter off."""

    min_chars: int = 20  # shorter documents are dropped (too_short)
    judged_from: Positive = 200  # characters from which all count; below: only length, language, spam and boilerplate
    boilerplate: Fraction = 0.6  # most of the text that menus, notices and bylines may take up (boilerplate)
    own_language: Fraction = 0.1  # least share of Hangul, or of Latin letters in English (wrong_language)
    symbols: Fraction = 0.35  # most, without white space, that no letters, digits or common marks may be (symbols)
    digits: Fraction = 0.45  # most of the text, white space apart, that digits may be (digits)
    word_length: Rate = 15.0  # most characters a word may have on average (word_length)
    repeated_characters: Fraction = 0.35  # most that may be the same as the one before (repeated_characters)
    grammar: Amount = Field(default=0.35, le=2)  # least share of Korean words with an ending, plus sentences (keywords)
    function_words: Fraction = 0.05  # least share of English words such as "the" and "of" (keywords)
    repeated_lines: Fraction = 0.45  # most of the text in lines that stood before (repeated_lines)
    repeated_phrases: Fraction = 0.45  # most of it in runs of 32 characters that stand elsewhere (repeated_phrases)
    spam: Fraction = 0.05  # most letters in words of advertising for gambling, sex and pills (spam)


class Slurm(Section):
    """What clean.engine = "slurm" asks of the cluster, for each task."""

    partition: str = "cpu"
    qos: str = "normal"
    time: str = "12:00:00"
    memory_gb: Positive = 4
    setup: str = ""  # a shell command that each job runs first, such as `source venv/bin/activate`


class Clean(Section):
    free: ClassVar[set[str]] = {"engine", "workers", "slurm"}
    sources: tuple[Source, ...] = ()
    filters: Filters = Filters()
    personal: bool = True  # mask e-mail addresses, phone, registration, card and account numbers
    dedup: Literal["minhash", "exact", "none"] = "minhash"  # exact: same documents; minhash: near-duplicates too
    similarity: Fraction = 0.6  # share of common n-grams (Jaccard) from which minhash calls two documents the same
    paragraph_repeats: Count = 10  # a paragraph in more documents stays only in the first; 0: all of them stay
    decontaminate: tuple[str, ...] = ()  # evaluation sets, as globs below data_root: documents with an item go
    engine: Literal["local", "ray", "slurm"] = "local"
    workers: Count = 0  # tasks at a time; 0: one for each core (local), no bound (ray, slurm)
    slurm: Slurm = Slurm()
    validation: Fraction = 0.01  # share of each source's documents held out, chosen by a hash of the text
    strict: bool = True  # stop at the first line or file that cannot be read; false: report it, count it and go on

    @model_validator(mode="after")
    def _names(self) -> Clean:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("two sources have the same name")
        return self


class Tokenizer(Section):
    vocab_size: int = Field(default=16_384, ge=259, le=65_536)  # special tokens included; a token fits two bytes
    sample_docs: Positive = 10_000_000  # documents to train on, shared among the sources as `balance` says
    balance: dict[str, Amount] = {}  # share of the sampled bytes per language, {ko = 0.5, en = 0.5}; empty: as it is


class Model(Section):
    layers: Positive = 6
    heads: Positive = 4
    kv_heads: Positive = 4
    dim: Positive = 256
    ffn_dim: Positive = 704
    seq_len: Positive = 512
    tied: bool = True  # the output head shares the embedding's weights
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

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks; AdamW for the rest
    lr: Rate = 4e-4  # peak rate of AdamW (embedding, head and norms under muon)
    muon_lr: Rate = 0.02  # peak rate of Muon, for matrices only
    weight_decay: Amount = 0.1
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip: Amount = 1.0  # largest gradient norm; 0 switches clipping off
    warmup: Fraction = 0.01  # share of the steps in which the rate climbs
    decay: Literal["cosine", "wsd"] = "cosine"  # cosine: from the peak on; wsd: constant, then linear
    decay_share: Fraction = 0.4  # share of the steps, the last ones, in which wsd decays
    final_lr: Fraction = 0.1  # last rate as a share of the peak
    micro_batch: Positive = 16  # sequences in one forward pass; what is left of the batch is accumulated
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"  # fp8: matrices multiply in FP8; never chosen by itself
    compile: bool = True  # compile each block where a C++ compiler is found
    recompute: bool = False  # compute activations again in the backward pass: less memory, a third more work
    eval_every: Positive = 200
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    log_every: Positive = 10
    spike: Amount = 10.0  # deviations above the median from which a loss or gradient norm is a fault; 0: never
    faults: Count = 20  # steps of 1,000 skipped for a fault (not finite, or a spike) before training gives up


class Pretrain(Schedule):
    tokens: Positive = 20_000_000
    batch_tokens: Positive = 16_384  # tokens of one optimizer step over all devices
    bigram_steps: Count = 0  # steps in which embedding and head learn counted pairs of tokens first; needs two matrices
    mix: dict[str, Amount] = {}  # weight per source name or language; empty: every source by its size
    prompts: tuple[str, ...] = ("대한민국의 수도는", "옛날 옛적에", "The capital of France is", "Once upon a time")
    """Continued at every evaluation, so that a person sees what the model says."""


class SftSource(Section):
    """Conversations in any known format. path: glob below data_root, `hub:ORG/NAME/GLOB` or `made:...`."""

    path: str
    licence: str = "unstated"
    origin: str = ""
    limit: Positive | None = None
    weight: Rate = Field(default=1.0, validation_alias=AliasChoices("weight", "repeat"))  # `repeat` in older recipes
    """Times that a conversation counts in one epoch; 0.5: a half of them."""
    languages: tuple[str, ...] = ()  # only records whose `lang` is one of these; empty: all
    strict: bool = True  # stop at the first bad record; false: count it and go on


class Sft(Schedule):
    sources: tuple[SftSource, ...] = ()
    epochs: Positive = 3
    batch_size: Positive = 16  # packed rows of seq_len tokens in one optimizer step
    lr: Rate = 2e-5
    weight_decay: Amount = 0.0
    warmup: Fraction = 0.03
    validation: Fraction = 0.02
    prompts: tuple[str, ...] = ("안녕하세요?", "너는 누구야?", "Hello!", "What can you do?")
    lora_rank: Count = 0  # train only low-rank adapters of the blocks' matrices, merged at the end; 0: all weights
    lora_alpha: Rate = 16.0  # an adapter counts lora_alpha / lora_rank times


class Dpo(Sft):
    """Tuning on pairs of answers. Pairs told apart have next to no gradient: the next would look like a spike."""

    epochs: Positive = 1
    lr: Rate = 1e-6
    spike: Amount = 0.0
    beta: Rate = 0.1  # how dear it is to depart from the model that the stage starts from


class Parallel(Section):
    """How the work is spread. One process on a CPU needs nothing here."""

    free: ClassVar[set[str]] = {"processes", "shard", "restarts", "nodes"}
    threads: Count = 0  # CPU threads; 0 takes what PyTorch chooses
    processes: Count = 0  # training processes on each machine; 0: one for each visible GPU, else one
    shard: Count = 0  # processes that share a copy of weights and optimizer, one copy a group (HSDP); 0: all
    restarts: Count = 3  # new starts of all processes, from the newest checkpoint, after one was lost
    nodes: Positive = 1  # machines that a generated Slurm script asks for


class Export(Section):
    gguf: tuple[Literal["bf16", "q8_0", "q4_0"], ...] = ("q8_0",)
    title: str = ""
    licence: str = "apache-2.0"


class Eval(Section):
    free: ClassVar[set[str]] = {"batch_size"}
    suites: tuple[Literal["ko", "en", "more", "chat"], ...] = ("ko", "en", "chat")
    """ko, en, more: zero-shot tasks, of the base model. chat: register, stop and repetition rate, of the chat model."""
    tasks: tuple[str, ...] = ()  # only these of the suites' tasks; empty: all
    data: str = ""  # folder below data_root with copies of the sets, one folder a task; empty: the Hugging Face hub
    limit: Positive | None = None  # items a task to take at most
    texts: tuple[str, ...] = ()  # globs below data_root: measured in bits per byte; empty: the held-out documents
    batch_size: Count = 0  # rows in one forward pass; 0: as many as memory and speed allow


class Judge(Section):
    free: ClassVar[set[str]] = {"concurrency"}
    prompts: str = ""  # CSV file `id,question,category,task`; empty: the 121 prompts that come with the project
    language: Literal["ko", "en"] = "ko"  # of the project's own prompts, and of the judge's instructions
    url: str = ""  # the judge: an OpenAI-compatible server. Its key is CHATBAKER_JUDGE_KEY or OPENAI_API_KEY
    model: str = ""  # the judge's name on that server; empty: the only model there
    against: tuple[str, ...] = ()  # run folders whose answers are compared with this run's, pair by pair
    price_in: Amount = 0.0  # US dollars per million prompt tokens, for the estimate
    price_out: Amount = 0.0  # US dollars per million answer tokens
    concurrency: Positive = 4  # requests under way at a time
    temperature: Amount = 0.5  # of the answers that are judged; their other sampling options are those of the chat
    max_new_tokens: Positive = 512


class Recipe(Section):
    name: Name
    seed: int = Field(default=1234, ge=0, lt=2**63)
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

    @model_validator(mode="after")
    def _two_tables(self) -> Recipe:
        if self.pretrain.bigram_steps and self.model.tied:
            raise ValueError("pretrain.bigram_steps needs an embedding and a head: set model.tied = false, or 0 steps")
        return self

    @field_validator("data_root")
    @classmethod
    def _home(cls, value: str) -> str:
        return str(Path(value).expanduser())  # after data_root= a shell leaves ~ as it is


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with overrides such as `pretrain.lr=3e-4`. Raises ChatBakerError."""
    path = find(str(path))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChatBakerError(f"not valid TOML: {error}", str(path)) from None
    return parse(_overridden(data, overrides), str(path))


def adhoc(model: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run that only examines a model which no recipe here made, named after it."""
    words = [part.rpartition("@")[2] for part in re.split(r"[\\/]", model) if part not in ("", ".", "..")]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words[-2:])).strip("-.") or "model"
    return parse(_overridden({"name": name}, overrides), "the command line")


def parse(data: dict[str, Any], where: str) -> Recipe:
    """Check plain data against the recipe's types; `where` names it in errors."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
    loc, message = first["loc"], first["msg"].removeprefix("Value error, ")
    key = ".".join(map(str, loc))
    if first["type"] != "extra_forbidden":
        raise ChatBakerError(f"{key}: {message[0].lower()}{message[1:]}" if key else message, where)
    section: Any = Recipe
    for part in loc[:-1]:
        if isinstance(part, str):  # else a number: the place in a tuple of sections
            kind = section.model_fields[part].annotation
            section = kind.__args__[0] if hasattr(kind, "__args__") else kind
    close = difflib.get_close_matches(str(loc[-1]), section.model_fields, n=1, cutoff=0.5)
    known = f"Did you mean {close[0]!r}?" if close else f"Known here: {', '.join(section.model_fields)}"
    raise ChatBakerError(f"unknown key {key!r}", where, known)


def find(name: str) -> Path:
    """A recipe by path, or by the bare name of one that ships with the package (`tiny`, `mini`, `1.3b`)."""
    path, shipped = Path(name), shipped_recipes()
    if path.is_file():
        return path
    if path.name == name and name.removesuffix(".toml") in shipped:
        return shipped[name.removesuffix(".toml")]
    hint = f"Give a .toml file, or one of: {', '.join(sorted(shipped))} ('chatbaker new' copies one)"
    raise ChatBakerError(f"no recipe {name!r}", hint=hint)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the project: beside the package in a clone, inside it in a wheel."""
    here = Path(__file__).parent
    folder = here / "_recipes" if (here / "_recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in folder.glob("*.toml")}


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML text that `load` reads back to an equal recipe."""
    return "\n".join(_toml(recipe.model_dump(mode="json", exclude_none=True))) + "\n"


def _toml(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines of a table: its plain values first, as TOML wants it, then the tables in it."""
    later: list[str] = []
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict):
            later += ["", f"[{name}]", *_toml(value, name + ".")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                later += ["", f"[[{name}]]", *_toml(item, name + ".")]
        else:
            quoted = key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
            yield f"{quoted} = {value if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}"
    yield from later


def _overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The data, changed in place."""
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ChatBakerError(f"cannot read the override {override!r}", hint="Write section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        section = data
        *parents, last = dotted.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ChatBakerError(f"{parent!r} in the override {override!r} is not a section")
        section[last] = value
    return data

"""Recipes: strict, with errors that say what to type, and a dump that reads back equal."""

from pathlib import Path

import pytest

from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.model.sizes import parameters
from chatbaker.recipe import dump, load, parse, shipped_recipes


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "r.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", ["tiny", "mini", "1.3b"])
def test_shipped_recipes_load_and_dump_reads_back(name, write):
    recipe = load(name)
    assert load(write(dump(recipe))) == recipe
    assert {"tiny", "mini", "1.3b"} <= set(shipped_recipes())


def test_the_reference_recipe_has_the_reference_figures():
    recipe = load("1.3b")
    model, pretrain, sft = recipe.model, recipe.pretrain, recipe.sft
    assert (model.layers, model.heads, model.dim, model.ffn_dim, model.seq_len) == (24, 32, 2048, 5632, 2048)
    assert recipe.tokenizer.vocab_size == 50_304
    assert recipe.tokenizer.sample_docs == 10_000_000
    assert round(parameters(model, 50_304) / 1e9, 2) == 1.44
    assert (pretrain.batch_tokens, pretrain.lr, pretrain.tokens) == (4_194_304, 4e-4, 10**12)
    assert pretrain.weight_decay == 0.1
    assert (sft.batch_size, sft.lr, sft.epochs, sft.weight_decay, sft.warmup) == (16, 2e-5, 3, 0.0, 0.03)


def test_overrides(write):
    path = write('name = "x"\n[pretrain]\nlr = 1e-3\n')
    recipe = load(path, ["pretrain.lr=3e-4", "model.layers=2", "data_root=/data/한글", 'name="y"', "sft.epochs=1"])
    assert (recipe.pretrain.lr, recipe.model.layers, recipe.data_root, recipe.name) == (3e-4, 2, "/data/한글", "y")
    assert load(path, ["name=2026"]).name == "2026"
    Path(path).write_bytes(Path(path).read_text("utf-8").encode("utf-8-sig"))  # as Windows' editor does
    assert load(path).name == "x"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ('name="x"\n[pretrain]\nlerning_rate=1', [], r"unknown key 'pretrain\.lerning_rate'.*Known here|Did you mean"),
        ('name="x"\n[pretrain]\nmuonlr=1', [], r"Did you mean 'muon_lr'\?"),
        ('name="x"\n[[clean.sources]]\nname="a"\npath="p"\nlangage="ko"', [], r"unknown key|language"),
        ('name="x"\n[model]\ndim=30\nheads=4', [], "even multiple of heads"),
        ('name="x"\n[model]\nlayers=0', [], r"model\.layers: input should be greater than 0"),
        ('name="x"', ["pretrain"], "cannot read the override 'pretrain'"),
        ('name="x"', ["name.a.b=1"], "is not a section"),
        ("name=", [], "not valid TOML"),
        ('name="a/b"', [], "name: "),
        ('name=".."', [], "name: "),
        ('name="x"', ["tokenizer.balance={ko=nan}"], r"tokenizer\.balance\.ko: input should be a finite number"),
        ('name="x"', ["pretrain.lr=inf"], r"pretrain\.lr: input should be a finite number"),
        ('name="x"', ["pretrain.mix={ko=inf}"], r"pretrain\.mix\.ko: input should be a finite number"),
        ('name="x"', ["seed=99999999999999999999"], "seed: "),
        ('name="x"', ["parallel.threads=-1"], r"parallel\.threads: "),
        ('name="x"\n[tokenizer]\nvocab_size=70000', [], r"tokenizer\.vocab_size"),
    ],
)
def test_mistakes_are_named(write, text, overrides, message):
    with pytest.raises(ChatBakerError, match=message):
        load(write(text), overrides)


def test_a_missing_recipe_names_those_that_ship():
    with pytest.raises(ChatBakerError, match=r"no recipe 'nope\.toml'.*1\.3b, mini, tiny"):
        load("nope.toml")


def test_every_knob_of_every_section_has_a_type_and_a_default():
    assert parse({"name": "x"}, "here").pretrain.optimizer == "adamw"
    for section in (recipes.Clean, recipes.Tokenizer, recipes.Model, recipes.Pretrain, recipes.Sft, recipes.Export):
        section()

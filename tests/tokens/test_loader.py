"""Batches: every token once over all ranks, targets one ahead, documents counted."""

import numpy as np
import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.tokens.loader import IGNORE, Batch, PretrainData, SftData, mix_weights, window_batch
from chatbaker.tokens.shards import Index, load_index, write_shard

END = 0


@pytest.fixture
def index(tmp_path):
    """Two sources whose tokens are all different numbers, but for the document starts."""
    numbers = iter(range(1, 60_000))
    shards = []
    for name, language, documents in (("a", "ko", 40), ("b", "en", 25)):
        texts = (([next(numbers) for _ in range(50 + i)], 100) for i in range(documents))
        shards.append(write_shard(tmp_path, name, language, "train", texts, END))
    Index(tmp_path, 60_000, END, tuple(shards)).save()
    return load_index(tmp_path)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_union_of_ranks_is_every_token_once_per_pass(index, world):
    data = PretrainData(index, {"a": 1.0}, 16, 8, seed=3)
    windows = (len(data.tokens[0]) - 1) // 16
    steps = windows // 8
    rows = np.concatenate([data.batch(step, rank, world).ids for step in range(steps) for rank in range(world)])
    seen = {tuple(row) for row in rows.tolist()}
    assert len(rows) == steps * 8 == len(seen)  # no window twice
    assert seen <= {tuple(data.tokens[0][i * 16 : i * 16 + 16].tolist()) for i in range(windows)}
    assert windows - len(rows) < 8  # none missing but for the last, unfinished step


def test_every_world_size_sees_the_same_step(index):
    data = PretrainData(index, {}, 16, 8, seed=3)
    for step in (0, 7):
        whole = sorted(map(tuple, data.batch(step).ids.tolist()))
        for world in (2, 4, 8):
            parts = np.concatenate([data.batch(step, rank, world).ids for rank in range(world)])
            assert sorted(map(tuple, parts.tolist())) == whole


def test_targets_are_the_next_tokens_and_documents_start_at_end_of_text():
    windows = np.array([[5, 6, END, 7, 8, END, 9]])
    batch = window_batch(windows, END)
    assert batch.ids.tolist() == [[5, 6, END, 7, 8, END]]
    assert batch.targets.tolist() == [[6, END, 7, 8, END, 9]]
    assert batch.docs.tolist() == [[0, 0, 1, 1, 1, 2]]
    assert batch.valid == 6


def test_a_cut_token_file_is_named(index):
    path = index.folder / "a.train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ChatBakerError, match=r"a\.train\.bin.*not whole.*chatbaker pack"):
        PretrainData(index, {}, 16, 4, 0)


def test_changed_tokens_change_the_fingerprint(index, tmp_path):
    other = tmp_path / "other"
    shard = write_shard(other, "a", "ko", "train", [([1, 2, 3], 9)], END)
    assert Index(other, 60_000, END, (shard,)).fingerprint != index.fingerprint


def test_mix_by_name_and_language():
    sources = [("wiki", "ko"), ("talk", "ko"), ("books", "en")]
    assert mix_weights(sources, [30, 10, 60], {}) == [30, 10, 60]
    assert mix_weights(sources, [30, 10, 60], {"ko": 0.5, "en": 0.5}) == [0.375, 0.125, 0.5]
    assert mix_weights(sources, [30, 10, 60], {"talk": 0.2, "ko": 0.3, "books": 0.5}) == [0.3, 0.2, 0.5]
    with pytest.raises(ChatBakerError, match="no source or language 'jp'"):
        mix_weights(sources, [30, 10, 60], {"jp": 1.0})
    with pytest.raises(ChatBakerError, match="no whole context"):
        mix_weights(sources, [30, 0, 60], {"talk": 1.0, "en": 1.0})
    with pytest.raises(ChatBakerError, match="no source has a whole context"):
        mix_weights(sources, [0, 0, 0], {})


def test_sft_rows_come_once_per_epoch_in_a_new_order():
    rows = Batch(*(np.arange(10)[:, None].repeat(3, 1) for _ in range(3)))
    data = SftData(rows, 2, seed=1, fingerprint="")
    epochs = [[int(i) for s in range(5 * e, 5 * e + 5) for i in data.batch(s).ids[:, 0]] for e in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert IGNORE < 0

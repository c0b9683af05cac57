"""The run folder."""

import os
import re
import subprocess
import sys
import time
import unicodedata

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import BAKING, RunDir, find_files, no_file


def test_the_chat_model_is_that_of_the_last_tuning(tmp_path):
    run = RunDir(tmp_path)
    assert run.tuned == "sft"
    run.path("dpo", "checkpoints").mkdir(parents=True)
    assert run.tuned == "sft"  # dpo is not done
    run.path("dpo", "model").mkdir()
    assert run.tuned == "dpo"
    run.write_stamp("sft", 0)
    run.write_stamp("dpo", time.time())
    assert run.tuned == "dpo"
    run.write_stamp("sft", 0)  # again
    with pytest.raises(ChatBakerError, match=r"older sft/model.*chatbaker dpo RECIPE"):
        print(run.tuned)


def test_files_are_found_whichever_way_their_hangul_is_written(tmp_path):
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, f"한국어-{form}.jsonl")
        (tmp_path / name).touch()
        for other in ("NFC", "NFD"):
            assert find_files(tmp_path, unicodedata.normalize(other, f"한*{form}.jsonl")) == [tmp_path / name]
    assert len(find_files(tmp_path, "한*.jsonl")) == 2


def test_where_no_file_is_found_it_says_what_to_type(tmp_path):
    (tmp_path / "folder").mkdir()
    assert no_file(tmp_path, "folder/") == "That is a folder: write folder/*"
    assert re.search(r"data_root=FOLDER.*written \[\[\]", no_file(tmp_path, "a[1].jsonl"))


def test_a_stage_of_its_own_waits_for_the_whole_bake(tmp_path, monkeypatch):
    code = "import sys; from chatbaker.rundir import RunDir\nwith RunDir.of('x', sys.argv[1]).lock(): print('in')"
    command = [sys.executable, "-c", code, tmp_path]
    with RunDir.of("x", tmp_path).lock(".bake"):
        other = subprocess.run(command, capture_output=True, text=True)
        own = subprocess.run(command, capture_output=True, text=True, env=os.environ | {BAKING: "1"})
    assert "another chatbaker process is at work" in other.stderr
    assert own.stdout == "in\n"

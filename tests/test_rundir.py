"""The run folder."""

from chatbaker.rundir import RunDir


def test_the_chat_model_is_that_of_the_last_tuning(tmp_path):
    run = RunDir(tmp_path)
    assert run.tuned == "sft"
    run.path("dpo", "checkpoints").mkdir(parents=True)
    assert run.tuned == "sft"  # dpo is not done
    run.path("dpo", "model").mkdir()
    assert run.tuned == "dpo"

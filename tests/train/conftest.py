"""What tests of a stopped and resumed training share."""

import os
import signal

import pytest

from chatbaker.train import loop


@pytest.fixture
def stop_at(monkeypatch):
    """A function: SIGTERM comes during that step, the first time that it is trained."""
    plain = loop.train_step

    def arm(last):
        def step(model, data, schedule, number, *rest):
            if number + 1 == last:
                monkeypatch.setattr(loop, "train_step", plain)
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(model, data, schedule, number, *rest)

        monkeypatch.setattr(loop, "train_step", step)

    return arm

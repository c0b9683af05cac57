from __future__ import annotations

from pathlib import Path

import pytest

from tests.infer import markov

SAYING = "안녕하세요! 저는 **앵무새**예요 🙂"


@pytest.fixture(scope="session")
def parrot_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return markov.parrot(tmp_path_factory.mktemp("gguf") / "parrot-q8_0.gguf", SAYING)


@pytest.fixture(scope="session")
def endless_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return markov.parrot(
        tmp_path_factory.mktemp("gguf") / "endless.gguf", "끝없이 말해요\n\n", ends=False, context=65_536
    )


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

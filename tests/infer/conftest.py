from __future__ import annotations

from pathlib import Path

import pytest

from tests.infer import markov

SAYING = "안녕하세요! 저는 **앵무새**예요 🙂"


@pytest.fixture(scope="session")
def parrot_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return markov.parrot(tmp_path_factory.mktemp("gguf") / "parrot-q8_0.gguf", SAYING)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATBAKER_CACHE", str(tmp_path / "cache"))

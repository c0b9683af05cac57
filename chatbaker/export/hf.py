"""The model folder as it is published: weights in bf16, tokenizer, settings; and its way to the hub."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.export.tensors import INDEX, entries, shards, write_bf16
from chatbaker.log import progress
from chatbaker.rundir import read_json, write_json


def write_hf(model: Path, out: Path) -> Path:
    """Copy a model folder to `out`, a new one, with its weights as bf16. Raises ChatBakerError for a broken folder."""
    names, total, done = shards(model), sum(entry.size for entry in entries(model).values()), 0
    config = read_json(model / "config.json")
    out.mkdir(parents=True)
    with progress("hf: values", total) as bar:
        for name in names:
            for values in write_bf16(model / name, out / name):
                done += values
                bar.update(done)
    if (model / INDEX).exists():
        write_json(out / INDEX, read_json(model / INDEX) | {"metadata": {"total_size": 2 * total}})
    config.pop("torch_dtype", None)
    write_json(out / "config.json", config | {"dtype": "bfloat16"})
    for path in sorted(model.iterdir()):
        if path.is_file() and path.name not in (*names, INDEX, "config.json"):
            shutil.copyfile(path, out / path.name)
    return out


def chat_template(folder: Path) -> str | None:
    """The Jinja text that ships with a model, in either of the two places where it may be."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    text = read_json(file).get("chat_template") if file.is_file() else None
    return text if isinstance(text, str) else None


def push(folder: Path, repository: str, below: str = "") -> str:
    """Upload a folder's files into the folder `below` of ORG/NAME on the hub, made where it is none; its address.

    Raises ChatBakerError for a malformed name, a missing or refused token, a hub out of reach.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ChatBakerError(f"{repository!r} is not a repository's name", "--push", "Write ORG/NAME")
    hint = "Make a token with write access, then type: hf auth login (or set HF_TOKEN)"
    if get_token() is None:
        raise ChatBakerError("the hub needs a token", "--push", hint)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        address = api.create_repo(repository, exist_ok=True)
        message = f"Upload {below or 'model'}"
        api.upload_folder(repo_id=repository, folder_path=folder, path_in_repo=below, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ChatBakerError(f"the hub refuses the token for {repository}", "--push", hint) from None
        raise ChatBakerError(f"the hub answers {status}: {error.server_message or error}", "--push") from None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        again = "Check the network (or HF_ENDPOINT) and type the same command again; what was exported is kept"
        raise ChatBakerError(f"cannot upload to {api.endpoint}: {error}", "--push", again) from None
    return str(address)

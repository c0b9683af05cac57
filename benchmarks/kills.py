"""Kill a bake again and again at random moments; what it ends with must be what an undisturbed one ends with.

    python benchmarks/kills.py --kills 20

Bakes a small recipe on generated text twice, from cleaning to export: once in peace, once killed with `kill -9` and
started anew, so many times. Compares the weights of the base and of the chat model, byte by byte. No data needed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = (
    *("tokenizer.vocab_size=1024", "model.layers=2", "model.dim=64", "model.heads=2", "model.kv_heads=2"),
    *("model.ffn_dim=128", "model.seq_len=128", "pretrain.batch_tokens=2048", "pretrain.micro_batch=8"),
    *("pretrain.tokens=1_000_000", "pretrain.compile=false", "pretrain.checkpoint_every=10", "pretrain.eval_every=200"),
    *("sft.compile=false", "sft.checkpoint_every=10", "sft.batch_size=8", "sft.micro_batch=8", "sft.epochs=1"),
)
WEIGHTS = ("pretrain/model/model.safetensors", "sft/model/model.safetensors")


def start(runs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chatbaker", "bake", "tiny", *SMALL, "--runs", str(runs)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def digests(runs: Path) -> list[str]:
    (run,) = runs.iterdir()
    return [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in WEIGHTS]


def stage(runs: Path) -> str:
    """The stage that was at work: the newest folder of the run."""
    folders = [path for path in runs.glob("*/*") if path.is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime).name if folders else "start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        quiet, killed = Path(temporary, "quiet"), Path(temporary, "killed")
        began = time.monotonic()
        if start(quiet).wait():
            sys.exit("the undisturbed bake failed")
        alone = time.monotonic() - began
        print(f"undisturbed: {alone:.0f} s", flush=True)
        kills = 0
        while kills < args.kills:
            process, wait = start(killed), random.uniform(1, 4 + 2 * alone / args.kills)
            try:
                if process.wait(wait):
                    sys.exit("a bake that was started again failed")
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # the bake and the stage that it started
                process.wait()
                kills += 1
                print(f"kill {kills} after {wait:.1f} s, in {stage(killed)}", flush=True)
        if start(killed).wait():
            sys.exit("the killed bake failed")
        same = digests(quiet) == digests(killed)
        print(f"{kills} kills; the weights are {'the same' if same else 'DIFFERENT'}")
        sys.exit(not same)


if __name__ == "__main__":
    main()

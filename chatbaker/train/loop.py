"""THE training loop: pretraining, SFT and DPO differ in their data and objective, never in how they step.

A step: gather the global batch of step s, run it in micro-batches, divide the summed loss by the count of valid
tokens, clip, look for faults, set the rate, step. Every process takes its share of each batch; what any of them decides
is decided by all. Checkpoints come before evaluation, so a crash in looking costs little. All state is (weights,
optimizer, step, the watch over faults): on a CPU the resumed run is bit-identical to one that was never stopped.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from chatbaker.dist import add_up, anywhere, from_first, world
from chatbaker.errors import ChatBakerError
from chatbaker.log import progress, say
from chatbaker.model.llama import Llama
from chatbaker.model.loss import cross_entropy_sum
from chatbaker.model.weights import save_model
from chatbaker.recipe import Recipe, Schedule
from chatbaker.rundir import atomic, disk_error
from chatbaker.tokens.loader import Batch, Data
from chatbaker.train import checkpoint
from chatbaker.train.faults import STREAK, Watch
from chatbaker.train.optim import build_optimizers, clip, rate, set_rate
from chatbaker.train.parallel import gathered, last_micro_batch, peak_flops, pick_dtype, whole

Objective = Callable[..., dict[str, Tensor]]
"""Of hidden states, head, `compiled`, the count of tokens with loss and the arrays after the ids: the "loss" to lower
and what else to log, summed."""


def next_token(
    hidden: Tensor, weight: Tensor, compiled: bool, trained: int, targets: Tensor, docs: Tensor
) -> dict[str, Tensor]:
    return {"loss": cross_entropy_sum(hidden, weight, targets, compiled, trained)}


def train(
    model: Llama,
    data: Data,
    schedule: Schedule,
    total_steps: int,
    folder: Path,
    flops_per_token: int,
    evaluate: Callable[[], dict[str, Any]],
    meta: dict[str, Any],
    compiled: bool,
    objective: Objective = next_token,
    begin: Callable[[], None] | None = None,
) -> None:
    """Train `model`, which is prepared, in place for `total_steps`, from the newest checkpoint in folder/checkpoints.

    evaluate: called every `eval_every` steps and at the end; its plain result goes into metrics.jsonl. meta: facts
    that must be the same on resume; what differs is named in the error. begin: called where there is no checkpoint.
    """
    size = world().size
    if data.batch_rows % size:
        raise ChatBakerError(
            f"a batch of {data.batch_rows} sequences cannot be shared by {size} processes",
            folder.name,
            "Change batch_tokens (sft: batch_size), or the number of processes",
        )
    device = model.model.embed_tokens.weight.device
    dtype = pick_dtype(schedule, device)
    optimizers = build_optimizers(model, schedule)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    meta = meta | {"data": data.fingerprint, "steps": total_steps}
    checkpoints = folder / "checkpoints"
    start, watch = _resume(checkpoints, model, optimizers, meta, schedule)
    if begin and not start:
        begin()
    peak, peak_source = peak_flops(device, dtype) if world().rank == 0 else (1.0, "")
    peak, where = peak * size, device if size == 1 else f"{size} x {device.type}"
    step_tokens = data.batch_rows * model.config.seq_len
    say(
        f"{total_steps:,} steps of {step_tokens:,} tokens in {str(dtype).removeprefix('torch.')} on {where}; "
        f"MFU = tokens/s x {flops_per_token / 1e6:.1f} MFLOP / {peak / 1e12:.3g} TFLOP/s ({peak_source})"
    )
    interval_began, interval_tokens = time.perf_counter(), 0
    with (
        open_metrics(folder / "metrics.jsonl", start) as (record, evaluated),
        progress(folder.name, total_steps, start) if world().rank == 0 else nullcontext() as bar,
        stop_signals() as stopping,
        checkpoint.Saver(checkpoints, schedule.keep_checkpoints) as saver,
    ):

        def look(step: int) -> bool:
            if step % schedule.eval_every and step != total_steps:
                return False
            with torch.compiler.set_stance("force_eager"), gathered(model):  # every new shape would be compiled anew
                result = evaluate()
            record(step=step, **result)
            scores = "  ".join(f"{name} {value['bits_per_byte']:.3f}" for name, value in result["eval"].items())
            say(f"step {step:,}: bits per byte  {scores}")
            for sample in result["samples"]:
                say(f"  {sample['prompt']} -> {sample['text']!r}")
            return True

        if anywhere(bool(start) and world().rank == 0 and start not in evaluated):  # killed between saving and looking
            look(start)
        for step in range(start, total_steps):
            share = rate(schedule, step, total_steps)
            means, norm, fault = train_step(
                model, data, schedule, step, dtype, optimizers, parameters, share, compiled, watch, objective
            )
            done = step + 1
            interval_tokens += step_tokens
            if fault:
                first = 1 + (_go_back(saver, model, optimizers, step, watch) if watch.lost else step)
                watch.skipped.append([first, done])
                record(step=done, fault=fault, skipped=[first, done])
                say(f"step {done:,}: {fault}; skipped {f'batches {first:,} to' if first < done else 'batch'} {done:,}")
                if sum(last > done - RECENT for _, last in watch.skipped) > schedule.faults:
                    raise ChatBakerError(
                        f"{fault} at step {done}, and the {RECENT:,} steps before had {schedule.faults} such faults",
                        hint="Lower lr (or muon_lr) and bake under another name (name=...), or allow more (faults=N)",
                    )
            elif done % schedule.log_every == 0 or done == total_steps:
                speed = interval_tokens / (time.perf_counter() - interval_began)
                mfu = speed * flops_per_token / peak
                record(
                    step=done,
                    tokens=done * step_tokens,
                    **{name: round(mean, 5) for name, mean in means.items()},
                    lr=schedule.lr * share,
                    grad_norm=round(norm, 4),
                    tokens_per_second=round(speed, 1),
                    mfu=round(mfu, 4),
                )
                if bar is not None:
                    bar.update(done, f"loss {means['loss']:.3f}  {speed:,.0f} tokens/s  MFU {mfu:.0%}")
                interval_began, interval_tokens = time.perf_counter(), 0
            last, stop = done == total_steps, anywhere(stopping() or saver.failed)
            due = watch.lost or done % schedule.checkpoint_every == 0 and not watch.streak
            if due or last or stop:  # raises where the save before has failed
                saver.save(done, model, optimizers, {"meta": meta, "watch": watch.state()})
            if stop and not last:
                saver.wait()
                raise ChatBakerError(f"stopped at step {done}, saved", hint="The same command goes on from there")
            if look(done):
                interval_began, interval_tokens = time.perf_counter(), 0
    _check_end(parameters, watch, total_steps)


RECENT = 1000
"""Steps within which faults are counted."""

FREE = {
    "micro_batch",
    "compile",
    "recompute",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "spike",
    "faults",
    "prompts",
    "sources",
}
"""Knobs that may change before a checkpoint is resumed. What `sources` give is compared by fingerprint."""


def checkpoint_meta(recipe: Recipe, section: Schedule) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that resumes it."""
    knobs = section.model_dump(mode="json", exclude=FREE)
    return {"seed": recipe.seed, "model": recipe.model.model_dump(), **knobs}


def train_step(
    model: Llama,
    data: Data,
    schedule: Schedule,
    step: int,
    dtype: torch.dtype,
    optimizers: list[torch.optim.Optimizer],
    parameters: list[torch.nn.Parameter],
    share: float,
    compiled: bool,
    watch: Watch | None = None,
    objective: Objective = next_token,
) -> tuple[dict[str, float], float, str | None]:
    """One optimizer step; returns the objective's means (nats), the gradient norm and what is wrong with them.

    Where `watch` finds something wrong, the weights are left untouched.
    """
    device = model.model.embed_tokens.weight.device
    batch = data.batch(step, world().rank, world().size)
    valid = max(int(add_up(torch.tensor(batch.valid, device=device))), 1)
    totals: dict[str, Tensor] = {}
    parts = list(batch.split(schedule.micro_batch))
    for number, part in enumerate(parts, 1):
        last_micro_batch(model, number == len(parts))
        hidden, *arrays = forward(model, part, dtype)
        for name, value in objective(hidden, model.lm_head.weight, compiled, part.trained, *arrays).items():
            mean = value / valid
            if name == "loss":
                mean.backward()
            totals[name] = totals.get(name, 0.0) + mean.detach()
    norm = clip(parameters, schedule.clip)
    means = {name: float(add_up(total)) for name, total in totals.items()}
    fault = watch(means["loss"], norm) if watch else None
    set_rate(optimizers, share)
    for optimizer in optimizers:
        if fault is None:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return means, norm, fault


def forward(model: Llama, part: Batch, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states, and the batch's arrays after the ids."""
    ids, targets, docs, *rest = (torch.from_numpy(a).to(model.model.embed_tokens.weight.device) for a in part.arrays)
    return [model(ids, docs, dtype=dtype), targets, docs, *rest]


def _check_end(parameters: list[torch.nn.Parameter], watch: Watch, total_steps: int) -> None:
    """Raises ChatBakerError for weights that nobody should go on with."""
    lost = len({step for first, last in watch.skipped for step in range(first, last + 1)})
    own = (p.to_local() if isinstance(p, DTensor) else p for p in parameters)
    broken = anywhere(not all(bool(part.isfinite().all()) for part in own))
    if broken or 2 * lost > total_steps:
        what = "the weights are not finite" if broken else "more was skipped than learned"
        raise ChatBakerError(
            f"training came to nothing: {what}, with {lost:,} of {total_steps:,} steps skipped",
            hint="Lower lr (or muon_lr) and bake under another name (name=...)",
        )


def hand_over(model: Llama, folder: Path, tokenizer: Path, end_of_text: int, end_of_turn: int) -> None:
    """Write the trained network where the next stage finds it; the first process does."""
    full = whole(model)

    def write() -> None:
        assert full is not None
        save_model(full, folder, tokenizer, end_of_text, end_of_turn)

    from_first(write)


def _go_back(
    saver: checkpoint.Saver, model: Llama, optimizers: list[torch.optim.Optimizer], step: int, watch: Watch
) -> int:
    """Take weights and optimizer back to before the faults; the step, or `step` where no checkpoint is so old.

    A checkpoint after which nothing but faults came went wrong already: then it is the one before.
    """
    saver.wait()
    found = from_first(lambda: checkpoint.latest(saver.folder, calm=watch.streak // STREAK))
    if found is None:
        say("no checkpoint from before the faults to go back to")
        return step
    path, marker = found
    checkpoint.load(path, model, optimizers)
    watch.compare_with(marker["watch"])
    say(f"back to the weights of step {marker['step']:,} ({path})")
    return int(marker["step"])


def _resume(
    folder: Path, model: Llama, optimizers: list[torch.optim.Optimizer], meta: dict[str, Any], schedule: Schedule
) -> tuple[int, Watch]:
    found = from_first(lambda: checkpoint.latest(folder))
    if found is None:
        return 0, Watch(schedule.spike)
    path, marker = found
    defaults = {key: knob.default for key, knob in type(schedule).model_fields.items()}
    for key, value in meta.items():
        before = marker["meta"].get(key, defaults.get(key))  # a knob that was not there yet had its default
        if before != value:
            raise ChatBakerError(
                f"{key} changed since this checkpoint: {before!r} then, {value!r} now",
                str(path),
                f"Undo the change, or start anew in another run (name=...) or with: rm -r {folder}",
            )
    checkpoint.load(path, model, optimizers)
    say(f"going on from step {marker['step']:,} ({path})")
    return int(marker["step"]), Watch(schedule.spike, marker.get("watch"))


@contextmanager
def open_metrics(path: Path, start: int) -> Iterator[tuple[Callable[..., None], set[int]]]:
    """A function that appends one plain object a line, and the steps up to `start` whose evaluation is on record.

    Lines past the step that a run resumes from are dropped first. Only the first process writes.
    """
    if world().rank:
        yield lambda **row: None, set()
        return
    kept, evaluated = [], set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill cut the last line
        if row["step"] <= start:
            kept.append(line + "\n")
            if "eval" in row:
                evaluated.add(row["step"])
    with atomic(path) as whole:
        whole.writelines(kept)
    with open(path, "a", encoding="utf-8") as file:

        def record(**row: Any) -> None:
            try:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            except OSError as error:
                raise disk_error(error, path) from error

        yield record, evaluated


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the loop to save and stop after the step; a second Ctrl-C stops at once.

    A second SIGTERM is the same one, sent by Slurm to every process and by the elastic agent to its own.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            say("stopping after this step (Ctrl-C again: at once, without saving)")
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

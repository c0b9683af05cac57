"""Several processes from one that has imported torch already: `python -m tests.train.ranks JOBS.json`.

A job is {"ranks", "stage", "recipe", "run", "signal", "poison"}: a stage by so many processes; at step `signal` the
last of them gets SIGTERM; at step `poison` the first one's gradient is NaN after all are summed. What went wrong in a
process is written to RUN/rank-N.txt.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.recipe import load
from chatbaker.rundir import RunDir
from chatbaker.train import loop


def rank(number: int, port: int, job: dict) -> None:
    world = {"RANK": number, "WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in world.items()})
    loop.peak_flops = lambda *_: (1e12, "not measured")
    plain = loop.train_step

    def step(model, data, schedule, number_of_step, *rest):
        if number_of_step + 1 == job.get("signal") and number == job["ranks"] - 1:
            for _ in range(2):  # Slurm sends one to every process, and the elastic agent another to its own
                os.kill(os.getpid(), signal.SIGTERM)
        return plain(model, data, schedule, number_of_step, *rest)

    plain_clip, clipped = loop.clip, []

    def clip(parameters, largest):
        clipped.append(1)
        if len(clipped) == job.get("poison") and number == 0:
            getattr(parameters[0].grad, "_local_tensor", parameters[0].grad)[0] = float("nan")
        return plain_clip(parameters, largest)

    loop.train_step, loop.clip = step, clip
    try:
        import_module(f"chatbaker.train.{job['stage']}").run(load(job["recipe"]), RunDir(Path(job["run"])))
    except ChatBakerError as error:
        Path(job["run"], f"rank-{number}.txt").write_text(str(error), encoding="utf-8")


def main() -> None:
    fork = multiprocessing.get_context("fork")  # this process never ran a backward pass, so its children may
    for job in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [fork.Process(target=rank, args=(number, port, job)) for number in range(job["ranks"])]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0, (job, process.exitcode)


if __name__ == "__main__":
    main()

"""One process of a training that the elastic agent starts; the last one is killed at step 13, the first time."""

import os
import signal

from chatbaker.train import launch, loop


def main() -> None:
    plain = loop.train_step

    def step(model, data, schedule, number, *rest):
        last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
        if number == 12 and last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(model, data, schedule, number, *rest)

    loop.train_step = step
    loop.peak_flops = lambda *_: (1e12, "not measured")
    launch.main()


if __name__ == "__main__":
    main()

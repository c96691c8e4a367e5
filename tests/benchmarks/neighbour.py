"""What a busy neighbour on the machine costs lgpl's commands, by how their threads wait.

    python -m tests.benchmarks.neighbour [--commands sample serve fit predict] [--rounds 2]
        [--codes 256] [--steps 30] [--memory] [--spins 1000 10000]

Seconds of whole commands, of `serve` those of one request to a warm server. "OpenMP" is libgomp's
own way of waiting, "lgpl" what the command line sets. `sample` and `serve` draw an image of random
weights of size B in bf16, guidance 2; `fit` takes that many steps of the emoji tokenizer's recipe;
`predict` encodes the emoji. The neighbour is one process that counts, with --memory also one that
copies an array of 320 MB. All ways take turns, and a time is the median over the rounds. --spins
adds other values of GOMP_SPINCOUNT. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from tests.conftest import ROOT
from tests.serving.generators import class_config, export_generator, export_tokenizer
from tests.serving.servers import Server, serve

OPENMP = {"GOMP_SPINCOUNT": "300000"}  # what libgomp takes where nothing is set
NEIGHBOURS = {
    "neighbour": "while True: pass",
    "memory": "import numpy as np\na = np.ones(40_000_000)\nb = a.copy()\nwhile True: b[:] = a",
}
UNSET = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
EMOJI = ("-c", "tokenizer/emoji.yaml")
QUIET = ("--trainer.enable_progress_bar", "false")
Env = dict[str, str]
Timed = Callable[[Env], float]  # seconds with these variables


def lgpl(env: Env, *command: object) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lgpl.cli", *map(str, command)],
        env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"lgpl {command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - start


def fit(folder: Path, env: Env, steps: int) -> float:
    logs = ("--trainer.logger.init_args.save_dir", folder / "fit")
    shutil.rmtree(folder / "fit", ignore_errors=True)
    size = ("--trainer.max_steps", steps, "--trainer.limit_val_batches", 0)
    return lgpl(env, "fit", *EMOJI, *logs, *size, *QUIET)


def predict(folder: Path, env: Env) -> float:
    out = ("--trainer.callbacks.init_args.out", folder / "codes", "--data.image_size", 64)
    shutil.rmtree(folder / "codes", ignore_errors=True)
    encode = ("-c", "tokenizer/encode_emoji.yaml", "--ckpt_path", folder / "tokenizer.ckpt")
    return lgpl(env, "predict", *EMOJI, *encode, *out, *QUIET)


def request(server: Server) -> float:
    start = time.perf_counter()
    server.post({"prompt": "7"}, timeout=600).raise_for_status()
    return time.perf_counter() - start


@contextlib.contextmanager
def neighbour(program: str | None) -> Iterator[None]:
    if program is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        time.sleep(1)  # until it is busy
        try:
            yield
        finally:
            process.kill()


def commands(
    folder: Path, options: argparse.Namespace, arms: dict[str, Env], stack: contextlib.ExitStack
) -> dict[str, Timed]:
    """Each with what it needs in the folder."""
    timed: dict[str, Timed] = {}
    draw = ("--dtype", "bf16", "--guidance", "2")
    if {"sample", "serve"} & {*options.commands}:
        size = {"size": "B", "codebook_size": 16384, "grid": [options.codes // 16, 16]}
        export_tokenizer(folder / "tokenizer", 16384)
        export_generator(folder / "generator", class_config(1000), **size)
    if "sample" in options.commands:
        drawn = ("--label", 7, "--out", folder / "image.png", *draw)
        timed["sample"] = lambda env: lgpl(
            env, "sample", "--checkpoint", folder / "generator", *drawn
        )
    if "serve" in options.commands:
        servers = {
            name: stack.enter_context(serve(folder / "generator", *draw, env=env))
            for name, env in arms.items()
        }
        names = {id(env): name for name, env in arms.items()}
        timed["serve"] = lambda env: request(servers[names[id(env)]])
    if "fit" in options.commands:
        timed["fit"] = lambda env: fit(folder, env, options.steps)
    if "predict" in options.commands:
        fit(folder, {}, 1)
        last = folder / "fit/tokenizer/checkpoints/last.ckpt"
        shutil.copy(last, folder / "tokenizer.ckpt")
        timed["predict"] = lambda env: predict(folder, env)
    return timed


def main() -> None:
    p = argparse.ArgumentParser()
    names = ["sample", "serve", "fit", "predict"]
    p.add_argument("--commands", nargs="+", default=names, choices=names)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--codes", type=int, default=256, help="of an image, 16 in a row")
    p.add_argument("--steps", type=int, default=30, help="of fit")
    p.add_argument("--memory", action="store_true", help="the neighbour that copies, too")
    p.add_argument("--spins", type=int, nargs="*", default=[], help="other GOMP_SPINCOUNT")
    options = p.parse_args()
    arms: dict[str, Env] = {"OpenMP": OPENMP, "lgpl": {}}
    arms |= {f"{spins} spins": {"GOMP_SPINCOUNT": str(spins)} for spins in options.spins}
    beside: dict[str, str | None] = {"alone": None, "neighbour": NEIGHBOURS["neighbour"]}
    if options.memory:
        beside["memory"] = NEIGHBOURS["memory"]
    for name in UNSET:  # or it would hold for all
        os.environ.pop(name, None)
    print(f"load average at the start: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        timed = commands(Path(temporary), options, arms, stack)
        times: dict[tuple[str, str, str], list[float]] = {}
        ways = [(c, b, a) for c in timed for b in beside for a in arms]
        bar = tqdm(total=options.rounds * len(ways), desc="neighbour")
        for turn in range(options.rounds):
            for command, where, arm in ways[:: 1 if turn % 2 == 0 else -1]:
                bar.set_postfix_str(f"{command}, {where}, {arm}")
                with neighbour(beside[where]):
                    seconds = timed[command](arms[arm])
                times.setdefault((command, where, arm), []).append(seconds)
                bar.update()
        bar.close()
    median = {way: statistics.median(values) for way, values in times.items()}
    print("| command | threads wait as by | alone, s | of OpenMP's |", end="")
    print("".join(f" {where}, s | of alone |" for where in beside if where != "alone"))
    print("| --- | --- |" + " --- |" * (2 * len(beside)))
    for command in timed:
        for arm in arms:
            alone = median[command, "alone", arm]
            cells = [f"{alone:.2f}", f"{alone / median[command, 'alone', 'OpenMP']:.2f}×"]
            for where in [where for where in beside if where != "alone"]:
                value = median[command, where, arm]
                cells += [f"{value:.2f}", f"{value / alone:.2f}×"]
            print("|", " | ".join([command, arm, *cells]), "|")


if __name__ == "__main__":
    main()

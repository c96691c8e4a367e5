"""`lgpl plan`: memory, tokens and FLOPs of a training step, before it is queued."""

from __future__ import annotations

from lgpl.rehearsal import SAMPLES, Step

GIB = 2**30
NOT_COUNTED = "not counted: the driver (about 1 GiB), fragmentation, a frozen tokenizer or encoder"


def per_device(step: Step, gpus: int, sharded: bool, averaged: bool) -> dict[str, int]:
    """Bytes on each of so many devices, by what they are for.

    Args:
        step: of a device that holds the whole model.
        gpus: number of devices.
        sharded: by FSDP; else every device holds everything (DDP).
        averaged: a moving average of the weights (EMA) is kept.
    """
    parts = gpus if sharded else 1
    lines = {
        "parameters": -(-step.parameters // parts),
        "gradients": -(-step.gradients // parts),
        "optimizer state": -(-step.optimizer // parts),
    }
    if averaged:
        lines["moving average"] = -(-step.parameters // parts)
    if sharded:
        lines["gathered by FSDP"] = step.gathered
    elif gpus > 1:
        lines["buckets of DDP"] = step.gradients
    return {**lines, "activations": step.activations}


def report(step: Step, lines: dict[str, int], gpus: int, memory: float, accumulate: int) -> str:
    """The plan for people.

    Args:
        step: see `rehearse`.
        lines: see `per_device`.
        gpus: number of devices.
        memory: of one device, GiB.
        accumulate: batches per optimizer step.
    """
    used = sum(lines.values()) / GIB
    rows = [(name, f"{size / GIB:.2f} GiB") for name, size in (*lines.items(),)]
    rows += [("together", f"{used:.2f} GiB on each of {gpus}, {memory:g} GiB there")]
    batches = gpus * accumulate
    rows += [
        ("trainable weights", f"{step.weights / 1e6:.1f}M"),
        ("tokens a step", f"{step.tokens * batches:,}"),
        ("FLOPs a step", f"{step.flops * batches / 1e12:,.4g} T"),
    ]
    if step.cache:
        rows += [(f"KV cache of {SAMPLES}", f"{step.cache / GIB:.2f} GiB, sampling with guidance")]
    spare = memory - used
    verdict = f"fits, {spare:.1f} GiB to spare" if spare >= 0 else f"does NOT fit: {-spare:.1f} GiB"
    table = "\n".join(f"{name:<18}{figure}" for name, figure in rows)
    return f"{table}\n{verdict}{'' if spare >= 0 else ' too much'}\n{NOT_COUNTED}"

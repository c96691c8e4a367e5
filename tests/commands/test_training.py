"""What `lgpl fit`, `validate` and `predict` do and say at their end, in a log file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgpl.cli import main
from tests.conftest import TINY_TOKENIZER, Chain, logs
from tests.shards import samples, write_shard

Captured = pytest.CaptureFixture[str]
EMOJI = ["-c", "tokenizer/emoji.yaml", *TINY_TOKENIZER]
# Two batches an epoch, as progress is to be seen.
SHORT = ["--data.epoch_samples", "32", "--trainer.log_every_n_steps", "1"]


@pytest.mark.parametrize(("steps", "validations"), [(1, 1), (2, 1), (3, 2)])
def test_a_training_ends_validated(
    steps: int, validations: int, tmp_path: Path, capsys: Captured
) -> None:
    """Also in the midst of an epoch, and with the averaged weights that the checkpoint holds."""
    main(["fit", *EMOJI, *SHORT, "--trainer.max_steps", str(steps), *logs(tmp_path)])
    run = tmp_path / "tokenizer"
    checkpoint = run / "checkpoints/last.ckpt"
    said, noise = capsys.readouterr()
    assert "\r" not in said + noise and noise == ""
    assert f"checkpoint: {checkpoint}\n" in said and f"tensorboard --logdir {run}" in said
    events = EventAccumulator(str(run))
    events.Reload()
    found = [event.value for event in events.Scalars("val/psnr")]
    assert len(found) == validations
    main(["validate", *EMOJI, "--ckpt_path", str(checkpoint), "--trainer.logger", "false"])
    (psnr,) = re.findall(r"^val/psnr +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert float(psnr) == pytest.approx(found[-1], abs=1e-3)


def test_predict_says_what_it_wrote(chain: Chain, tmp_path: Path, capsys: Captured) -> None:
    broken = {**samples(1)[0], "__key__": "broken", "jpg": b"no image"}
    shard = write_shard(tmp_path / "images.tar", [*samples(3), broken])
    out = tmp_path / "codes"
    command = ["predict", *EMOJI, "-c", "tokenizer/encode_emoji.yaml", "--data.predict", shard]
    main([*command, "--ckpt_path", chain.tokenizer, "--trainer.callbacks.init_args.out", str(out)])
    said, noise = capsys.readouterr()
    skipped = r"1 skipped \(image that does not decode.*: 1\)"
    assert re.fullmatch(rf"{re.escape(str(out))}: 1 code shard, 3 samples, {skipped}\n", said)
    assert "\r" not in noise

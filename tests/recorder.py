"""Runs a command of lgpl with one callback more, which tells a test what happened inside."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from lgpl import cli


def run_with(recorder: Callback) -> None:
    """The command of this process's arguments; the recorder comes before all other callbacks."""
    make = cli.CommandLine.instantiate_trainer

    def with_recorder(self: cli.CommandLine, **kwargs: Any) -> Any:
        trainer = make(self, **kwargs)
        trainer.callbacks.insert(0, recorder)
        return trainer

    cli.CommandLine.instantiate_trainer = with_recorder  # type: ignore[method-assign]
    cli.main()

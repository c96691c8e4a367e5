"""Runs a command of lgpl with one callback more, which tells a test what happened inside."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from lgpl.cli import main
from lgpl.commands.training import CommandLine


def run_with(recorder: Callback) -> None:
    """The command of this process's arguments; the recorder comes before all other callbacks."""
    make = CommandLine.instantiate_trainer

    def with_recorder(self: CommandLine, **kwargs: Any) -> Any:
        trainer = make(self, **kwargs)
        trainer.callbacks.insert(0, recorder)
        return trainer

    CommandLine.instantiate_trainer = with_recorder  # type: ignore[method-assign]
    main()

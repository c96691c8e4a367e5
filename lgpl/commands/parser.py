"""A command's options, and one sentence about those that are wrong."""

from __future__ import annotations

import re
from typing import NoReturn

import jsonargparse

from lgpl.errors import UserError


class ArgumentParser(jsonargparse.ArgumentParser):
    """jsonargparse's, without the usage of all options before what is wrong with one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        said = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))
        said = re.sub(r'^Parser key "([\w.]+)":?', lambda key: f"{_option(key[1])}:", said)
        raise UserError(said) from ex


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"

"""What several tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lgpl.inference import load_generator
from lgpl.serving.sampler import SamplerEngine
from tests.serving.servers import export


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamplerEngine]:
    checkpoint = export(tmp_path_factory.mktemp("model"))
    made = SamplerEngine(load_generator(str(checkpoint), None, "cpu"))
    yield made
    made.close()

"""Nothing here runs without an engine."""

import pytest

from tests.engines.engine import python
from tests.engines.smollm2 import converted


@pytest.fixture(autouse=True, scope="session")
def engine():
    """Skips, before anything is converted, where there is no engine."""
    return python()


@pytest.fixture(scope="session")
def smollm2_strict(tmp_path_factory, engine):
    """SmolLM2 as `deepseek_v3`."""
    return converted(tmp_path_factory.mktemp("smollm2") / "strict", "convert.format=deepseek_v3")


@pytest.fixture(scope="session")
def smollm2_own(tmp_path_factory, engine):
    """The same as `regear_mla`, from the same calibration."""
    return converted(tmp_path_factory.mktemp("smollm2") / "own", "convert.preset=decoupled-grid")

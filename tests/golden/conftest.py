"""What several comparisons of trainings with naive code share."""

from pathlib import Path

import pytest
from tiny import nudge


@pytest.fixture(scope="session")
def reference(tiny_models: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model from which the start has moved by several nats, so far, and so, that z_ref is above 0."""
    return nudge(tiny_models["llama"][1], tmp_path_factory.mktemp("reference") / "model", seed=3, size=0.2)

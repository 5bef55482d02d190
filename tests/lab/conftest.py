"""The cut-down laboratory, made once."""

import pytest
from small import SmallLab, make_small_lab


@pytest.fixture(scope="session")
def small_lab(tmp_path_factory: pytest.TempPathFactory) -> SmallLab:
    return make_small_lab(tmp_path_factory.mktemp("lab"))

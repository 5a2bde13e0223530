"""What may change in a configuration that doesn't fit."""

import pytest

from rlef_jax import config
from rlef_jax.errors import ConfigError
from rlef_jax.planning.memory import Moment
from rlef_jax.planning.mend import candidates, changed, mended

GIB = 2.0**30


@pytest.fixture
def large():
    return config.load("configs/llama31_8b.py")


def test_the_cache_is_made_as_small_as_it_must_be(large):
    moment = Moment("new weights arrive", {"sampler's weights": 15 * GIB, "cache": 40 * GIB, "new weights": 20 * GIB})
    key, old, new, expected = next(candidates(large, moment, 72.8 * GIB, sampling=True))
    assert (key, old, new) == ("sampling.cache_gib", large.sampling.cache_gib, 37.0) and expected == 72 * GIB


def test_a_training_card_gives_up_rows_before_its_mesh_changes(large):
    moment = Moment("gradients", {"weights": 50 * GIB, "temporary": 40 * GIB})
    large.ppo.microbatch_rows = 256
    found = [(key, new) for key, _, new, _ in candidates(large, moment, 72.8 * GIB, sampling=False)]
    assert found == [("ppo.microbatch_rows", 128), ("mesh.fsdp", 16), ("mesh.fsdp", 32)]


def test_a_change_keeps_the_number_of_devices_and_is_checked(large):
    assert (changed(large, "mesh.fsdp", 16).mesh.data, large.mesh.fsdp) == (8, 8)
    with pytest.raises(ConfigError):
        changed(large, "ppo.microbatch_rows", 0)


class Fixed:
    """A plan of a training card that holds so much."""

    shared, sampling = False, {}

    def __init__(self, size, limit=72.8 * GIB):
        self.size, self.limit = size, limit
        self.assumed = self.speeds = self.card = self

    def too_large(self):
        return [Moment("gradients", {"weights": 10 * GIB, "temporary": self.size - 10 * GIB})] * (
            self.size > self.limit
        )


def test_the_first_change_that_fits_when_compiled_is_told(large):
    large.ppo.microbatch_rows = 512
    asked = []

    def make(config, names):
        asked.append((config.ppo.microbatch_rows, names))
        return Fixed(60 * GIB if config.ppo.microbatch_rows == 128 else 75 * GIB)

    assert mended(large, Fixed(100 * GIB), make) == "ppo.microbatch_rows from 512 to 128 would"
    assert asked == [(256, {"gradients"}), (128, {"gradients"})]
    told = mended(large, Fixed(100 * GIB), lambda *_: Fixed(80 * GIB))
    assert told.startswith("no single key would; tried ppo.microbatch_rows = 256, ppo.microbatch_rows = 128")

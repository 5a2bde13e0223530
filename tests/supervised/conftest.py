"""The judge of the tests of sources: that of the tests of rollouts."""

from tests.training.conftest import pool as pool

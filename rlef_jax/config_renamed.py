"""What config keys were called in earlier versions."""

# Keys and values of earlier versions. A command line or config file that has one gets an error with the new name; the
# `config.json` of an older run is read with both replaced.
RENAMED = {
    "sampling.lanes": "sampling.workers",
    "sampling.gather": "sampling.min_ready_fraction",
    "sampling.steps": "sampling.decode_steps",
    "sampling.capacities": "sampling.cache_lengths",
    "sampling.chunks": "sampling.prefill_chunks",
}
RENAMED_VALUES = {"mesh.critic": {"trainer": "shared", "own": "separate"}}

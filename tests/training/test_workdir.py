"""Whose run is this, from where does it go on, and what is refused rather than started afresh in silence."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.ppo.train_state import init_state, partition
from rlef_jax.training.checkpoint import Checkpoints, content_hash
from rlef_jax.training.episode_io import episodes_path, saved_steps, write_episodes
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.workdir import (
    CHECKPOINTS,
    FREE_KEYS,
    SFT,
    TRAIN,
    Progress,
    begun_as,
    command_of,
    find_checkpoint,
    frozen_names,
    items_of,
    open_workdir,
    reference_hash,
    resume,
    saved_policy,
)


def make_state(fill, width=3):
    params = {
        "policy": {"w": jnp.full((width, 2), fill, jnp.float32)},
        "critic": {"head": {"w": jnp.full((2,), fill), "b": jnp.float32(0)}},
    }
    return init_state(params, {"policy": {}, "critic": {}}, optax.adamw(1e-3).init).replace(step=jnp.int32(int(fill)))


FRESH = make_state(0.0)
START = Progress(iteration=0, reference=content_hash(FRESH.params["policy"]))


def save(folder, *iterations, reference=START.reference):
    with Checkpoints(folder / CHECKPOINTS, keep=9) as checkpoints:
        for number in iterations:
            progress = dataclasses.replace(START, iteration=number, reference=reference, skipped_updates=number)
            checkpoints.save(number, items_of(make_state(float(number))), dataclasses.asdict(progress))


def go_on(folder, fresh=FRESH, start=START, **kwargs):
    told = []
    with Checkpoints(folder / CHECKPOINTS, keep=9) as checkpoints:
        state, progress = resume(folder, checkpoints, fresh, start, checkpoint_every=2, tell=told.append, **kwargs)
    return state, progress, told


def record(folder, iterations):
    with MetricsWriter(folder) as writer:
        for step in range(iterations):
            writer.write(step, {"x": 1.0})
            write_episodes(episodes_path(folder, step), [])


def damage(folder, step):
    for path in (folder / CHECKPOINTS / str(step) / "policy").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_is_used_whole_and_what_lies_past_it_goes(tmp_path):
    save(tmp_path, 2, 4)
    record(tmp_path, 7)
    for number in (4, 6):
        write_episodes(tmp_path / "episodes" / f"valid_{number:06d}.jsonl.gz", [])
    state, progress, told = go_on(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(4.0))
    assert progress == dataclasses.replace(START, iteration=4, skipped_updates=4)
    assert "going on from iteration 4" in told[0]
    assert saved_steps(tmp_path) == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "episodes").glob("valid*")) == ["valid_000004.jsonl.gz"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned_reads")
def test_a_damaged_one_is_moved_aside_and_the_one_before_is_used(tmp_path):
    save(tmp_path, 2, 4)
    damage(tmp_path, 4)
    state, progress, told = go_on(tmp_path)
    assert progress.iteration == 2 and int(state.step) == 2
    assert "checkpoint 4" in told[0] and "is damaged" in told[0] and "trying the one before" in told[0]
    assert (tmp_path / "damaged_checkpoints" / "4").is_dir()
    save(tmp_path, 4)  # its place is free again


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned_reads")
def test_no_silent_fresh_start(tmp_path):
    save(tmp_path / "damaged", 2)
    damage(tmp_path / "damaged", 2)
    record(tmp_path / "damaged", 3)
    record(tmp_path / "removed", 5)  # the first checkpoint, after 2, was complete before the fifth iteration's end
    for name, count in (("damaged", 3), ("removed", 5)):
        with pytest.raises(RunError, match=f"records of {count} iterations and no checkpoint"):
            go_on(tmp_path / name)
        assert len(saved_steps(tmp_path / name)) == count


def test_killed_before_its_first_checkpoint_it_starts_again(tmp_path):
    record(tmp_path, 3)
    state, progress, _ = go_on(tmp_path)
    assert progress == START and state is FRESH and saved_steps(tmp_path) == []


def test_another_model_or_reference_is_refused(tmp_path):
    save(tmp_path / "a", 2)
    with pytest.raises(ConfigError, match=r"policy\['w'\] is float32\[3,2\] there, float32\[5,2\] in this config"):
        go_on(tmp_path / "a", fresh=make_state(0.0, width=5))
    save(tmp_path / "b", 2, reference="0123")
    with pytest.raises(ConfigError, match=r"other weights than config.model.init .* now gives \(hash 0123, now "):
        go_on(tmp_path / "b")
    unknown = dataclasses.replace(START, reference=None)  # parts of the weights lie in other processes
    assert go_on(tmp_path / "b", start=unknown)[1].iteration == 2


def with_adapters(base=1.0, a=2.0, b=0.0):
    return {"embed": jnp.full(3, base), "layers": {"gate": jnp.full(2, base), "gate_proj_a": jnp.full(2, a),
                                                   "gate_proj_b": jnp.full(2, b)}}  # fmt: skip


def test_drawn_adapters_are_no_part_of_what_a_run_begins_with():
    first = reference_hash(with_adapters())
    assert first == reference_hash(with_adapters(a=3.0))  # of another seed
    plain = with_adapters()
    del plain["layers"]["gate_proj_a"], plain["layers"]["gate_proj_b"]
    assert first == content_hash(plain) == reference_hash(plain)
    given = [reference_hash(with_adapters(a=a, b=b)) for a, b in ((2.0, 1.0), (3.0, 1.0), (2.0, 2.0))]
    assert len({first, reference_hash(with_adapters(base=2.0)), *given}) == 5
    assert given[0] == content_hash(with_adapters(b=1.0))


def adapters_state(**kwargs):
    """What a run of adapters begins with."""
    trainable, frozen = partition({"policy": with_adapters(**kwargs)}, lambda path: path[-1].startswith("gate_proj"))
    return init_state(trainable, frozen, optax.adamw(1e-3).init)


@pytest.mark.parametrize("of", [reference_hash, content_hash])
def test_adapters_are_found_again_beside_their_base(tmp_path, of):
    """Whatever the first ones were; `content_hash` of everything is what earlier versions have saved."""
    fresh = adapters_state()
    told = {**dataclasses.asdict(Progress(2, of(with_adapters()), best_iteration=None)), "frozen": frozen_names(fresh)}
    trained = adapters_state(a=7.0, b=8.0)
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(2, items_of(trained), told)
    now = Progress(0, reference_hash(with_adapters()))
    jax.tree.map(np.testing.assert_array_equal, go_on(tmp_path, fresh, now)[0].params, trained.params)
    others = {"base": with_adapters(base=2.0), "given": with_adapters(b=1.0), "drawn": with_adapters(a=3.0)}
    for name, begun in others.items():
        state = adapters_state().with_params({"policy": begun})
        if name == "drawn" and of is reference_hash:
            found = saved_policy(tmp_path, "last", begun, lambda begun=begun: begun)
            jax.tree.map(np.testing.assert_array_equal, found, trained.params["policy"])
            continue
        with pytest.raises(ConfigError, match=r"beside other weights than config.model.init \(or lora_init\)"):
            saved_policy(tmp_path, "last", begun, lambda begun=begun: begun)
        with pytest.raises(ConfigError, match="began with other weights"):
            go_on(tmp_path, state, Progress(0, reference_hash(begun)))


def test_the_seed_of_first_weights_is_the_runs(tmp_path):
    open_workdir(tmp_path, tiny(seed=3), TRAIN, resume=True)
    asked = tiny(seed=7, model__d_ff=32)
    begun = begun_as(asked, tmp_path)
    assert (begun.seed, begun.model.d_ff, asked.seed) == (3, 32, 7)


def tiny(**overrides):
    return config_lib.load("configs/tiny.py", overrides={k.replace("__", "."): v for k, v in overrides.items()})


def test_a_workdir_belongs_to_one_config(tmp_path):
    open_workdir(tmp_path, tiny(), TRAIN, resume=True)
    open_workdir(tmp_path, tiny(), TRAIN, resume=True)
    with pytest.raises(ConfigError, match="--resume=never"):
        open_workdir(tmp_path, tiny(), TRAIN, resume=False)
    with pytest.raises(ConfigError) as refused:
        open_workdir(tmp_path, tiny(seed=3, ppo__buckets=(256,)), TRAIN, resume=True)
    assert "config.seed: 0 there, 3 here" in str(refused.value)
    assert "config.ppo.buckets: [128, 192, 256] there, [256] here" in str(refused.value)
    # What an error of a run advises can be done.
    open_workdir(tmp_path, tiny(train__bad_update="skip", train__max_skipped=0), TRAIN, resume=True)
    open_workdir(tmp_path, tiny(train__iterations=99, execution__workers=1, model__family="llama"), TRAIN, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["iterations"] == 99


@pytest.mark.parametrize("of, other", [(TRAIN, SFT), (SFT, TRAIN)])
def test_a_workdir_belongs_to_one_command(tmp_path, of, other):
    """Whatever else differs: the first thing to say is whose folder it is."""
    open_workdir(tmp_path / "new", tiny(), of, resume=True)
    with MetricsWriter(tmp_path / "old") as writer:
        writer.write(20, {"loss": 1.0} | ({"time/total": 3.0} if of == TRAIN else {"tokens_per_s": 9.0}))
    config_lib.save(tiny(), tmp_path / "old")  # of an earlier version, which didn't say
    for name in ("new", "old"):
        assert command_of(tmp_path / name) == of
        for config in (tiny(), tiny(seed=3)):
            with pytest.raises(ConfigError) as refused:
                open_workdir(tmp_path / name, config, other, resume=True)
            line = str(refused.value)
            assert line.startswith(f"--workdir: {tmp_path / name} holds a run of {of}, and this is {other}: give")
            assert f"goes on with `python -m {of} --workdir={tmp_path / name}`" in line and "\n" not in line
        open_workdir(tmp_path / name, tiny(), of, resume=True)
    (tmp_path / "unknown").mkdir()
    config_lib.save(tiny(), tmp_path / "unknown")
    assert command_of(tmp_path / "unknown") == ""
    open_workdir(tmp_path / "unknown", tiny(), other, resume=True)
    assert command_of(tmp_path / "unknown") == other


def test_a_models_folder_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    with pytest.raises(ConfigError, match="config.json is not what a run wrote: it has no seed"):
        open_workdir(tmp_path, tiny(), TRAIN, resume=True)


def test_the_best_of_a_run_that_has_none_names_the_commands_own_key(tmp_path):
    for command, key in ((TRAIN, "config.eval.every"), (SFT, "config.sft.valid_share")):
        folder = tmp_path / command
        open_workdir(folder, tiny(), command, resume=True)
        save(folder, 2)
        with pytest.raises(ConfigError, match=rf"--checkpoint=best: .* \({key}\); use --checkpoint=last"):
            find_checkpoint(folder, "best")
        assert find_checkpoint(folder, "last") == 2


def test_free_keys_exist():
    assert set(FREE_KEYS) <= set(config_lib.leaf_keys(config_lib.base_config()))


def test_a_folder_with_a_run_but_no_config_is_refused(tmp_path):
    record(tmp_path, 1)
    with pytest.raises(ConfigError, match="a run without its config.json"):
        open_workdir(tmp_path, tiny(), TRAIN, resume=True)


@pytest.mark.parametrize("where", ["policy", "critic", "moment"])
def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path, where):
    items = items_of(make_state(2.0))
    if where == "policy":
        items["policy"]["w"] = items["policy"]["w"].at[2, 1].set(jnp.nan)
    elif where == "critic":
        items["learner"]["critic"]["head"]["b"] = jnp.float32(jnp.inf)
    else:
        moments = items["learner"]["opt_state"][0].nu["policy"]
        moments["w"] = moments["w"].at[0, 0].set(jnp.inf)
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(2, items, dataclasses.asdict(dataclasses.replace(START, iteration=2)))
    leaf = {"policy": r"\['policy'\]\['w'\]", "critic": r"\['head'\]\['b'\]", "moment": r"\.nu\['policy'\]\['w'\]"}[
        where
    ]
    with pytest.raises(ConfigError, match=rf"checkpoint 2 in .*: .*{leaf} holds NaN or infinity"):
        go_on(tmp_path)


def test_progress_of_earlier_versions_has_the_new_counts_at_their_default(tmp_path):
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        told = dataclasses.asdict(dataclasses.replace(START, iteration=2, skipped_updates=5))
        del told["skipped_in_row"]
        checkpoints.save(2, items_of(make_state(2.0)), told)
    _, progress, _ = go_on(tmp_path)
    assert progress == dataclasses.replace(START, iteration=2, skipped_updates=5, skipped_in_row=0)


def test_the_best_is_the_highest_and_of_equals_the_later():
    progress = START
    seen = []
    for number, score in enumerate([20.0, 30.0, 25.0, 30.0, 10.0], start=1):
        progress = dataclasses.replace(progress, iteration=number).after_validation(score)
        seen.append((progress.best_iteration, progress.best_score, progress.since_best))
    assert seen == [(1, 20.0, 0), (2, 30.0, 0), (2, 30.0, 1), (4, 30.0, 2), (4, 30.0, 3)]

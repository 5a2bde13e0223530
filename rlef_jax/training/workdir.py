"""A run's folder: is it this run's, from which iteration does it go on, and what lies past that point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.model.finite import check_params
from rlef_jax.model.lora import add_nothing, split
from rlef_jax.model.transformer import Params
from rlef_jax.ppo.train_state import TrainState, combine, partition
from rlef_jax.training import episode_io
from rlef_jax.training.checkpoint import Checkpoints, DamagedCheckpointError, content_hash
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.training.processes import broadcast_from_first

CHECKPOINTS = "checkpoints"
TRAIN, SFT = "rlef_jax.train", "rlef_jax.sft"  # the commands that make runs

# Keys that may change when a run goes on: none of them changes a number that the run has computed.
FREE_KEYS = (
    "train.iterations", "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.save_episodes",
    "train.plots",
    "train.bad_update", "train.max_skipped", "execution.workers", "eval.patience", "model.family",
    "plan.target", "plan.sampler_devices", "sft.steps", "sft.checkpoint_every", "sft.log_every",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands between two iterations. All of it is in the checkpoint's metadata, as JSON.

    Attributes:
      iteration: iterations done.
      reference: `reference_hash` of the weights that it began with, which are the reference policy's.
      best_iteration, best_score: the validation with the highest score so far (percent), None before the first.
      since_best: validations since one was better than all before it.
      skipped_updates: updates that were not applied; `skipped_in_row`: so many of them were the last ones.
    """

    iteration: int
    reference: str | None
    best_iteration: int | None = None
    best_score: float | None = None
    since_best: int = 0
    skipped_updates: int = 0
    skipped_in_row: int = 0

    def after_validation(self, score: float) -> Progress:
        """With one more validation of the weights after `iteration`; of equal scores the later is the best."""
        better = self.best_score is None or score > self.best_score
        since = 0 if better else self.since_best + 1
        if better or score == self.best_score:
            return dataclasses.replace(self, best_iteration=self.iteration, best_score=score, since_best=since)
        return dataclasses.replace(self, since_best=since)


def open_workdir(workdir: Path, config: ConfigDict, command: str, *, resume: bool) -> None:
    """Makes the folder, or checks that the run in it is this one, and writes config.json.

    Raises ConfigError for a run of another command than `command` (TRAIN or SFT), one with other values (naming each),
    or for any run where `resume` is False; OSError where the folder can't be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / config_lib.SAVED_NAME).exists():
        if (other := command_of(workdir)) not in ("", command):
            raise ConfigError(
                f"--workdir: {workdir} holds a run of {other}, and this is {command}: give it another --workdir; that"
                f" run goes on with `python -m {other} --workdir={workdir}` and its own --config"
            )
        if not resume:
            raise ConfigError(f"{workdir} holds a run already, and --resume=never: give another --workdir")
        differing = _differences(config_lib.read_saved(workdir), config)
        if differing:
            raise ConfigError(
                f"{workdir} holds a run with another config; give another --workdir, or the same values:\n"
                + "\n".join(f"  config.{key}: {saved!r} there, {current!r} here" for key, saved, current in differing)
            )
    elif any((workdir / name).exists() for name in (CHECKPOINTS, "metrics.jsonl")):
        raise ConfigError(f"{workdir} holds a run without its {config_lib.SAVED_NAME}: give another --workdir")
    config_lib.save(config, workdir, command)


def command_of(workdir: Path) -> str:
    """The command whose run a folder holds, TRAIN or SFT; "" where it doesn't say. Raises ConfigError for no run."""
    if command := config_lib.read_saved(workdir).get(config_lib.COMMAND):
        return str(command)
    try:  # a folder of an earlier version: an iteration's record says where its time went
        return next((TRAIN if "time/total" in record else SFT for record in read_metrics(workdir)), "")
    except FileNotFoundError:
        return ""


def has_results(workdir: Path) -> bool:
    """Whether a run has left anything in the folder that a later start would go on from."""
    return bool(_recorded(workdir)) or any(any((workdir / name).glob("*")) for name in (CHECKPOINTS, "evaluations"))


def _differences(saved: Mapping[str, Any], config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """(key, saved value, current value) of every key that matters. A key added since has its default as saved."""
    defaults = config_lib.flat(config_lib.base_config())
    current = {key: _plain(value) for key, value in config_lib.flat(config).items() if key not in FREE_KEYS}
    complete = {key: _plain(saved.get(key, defaults[key])) for key in current}
    return [(key, complete[key], current[key]) for key in current if complete[key] != current[key]]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def reference_hash(first: Params) -> str | None:
    """A hash of the weights that a run begins with, as far as it goes on to need them; None as `content_hash`.

    Of a model with adapters these are the base, and the adapters where they are given (`config.model.lora_init`). Those
    that are drawn add nothing at first: the reference policy is its base then, and what was trained is in the
    checkpoint. So they aren't in the hash, which is the same whatever the seed.
    """
    base, adapters = split(first["layers"])
    here = all(leaf.is_fully_addressable for leaf in adapters.values())
    return content_hash({**first, "layers": base} if here and add_nothing(adapters) else first)


def _others(before: str | None, now: str | None, first: Params) -> bool:
    """Whether a run began with other weights than `first`: by the hash of its own and that of these, if both are known.

    Earlier versions had drawn adapters in the hash, so that it may be the one of everything.
    """
    return None not in (before, now) and now != before and content_hash(first) != before


def begun_as(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The configuration with the seed of the run in a folder: what of its first weights was drawn was drawn by that,
    whatever the seed of those who use them."""
    begun = config.copy_and_resolve_references()
    begun.seed = config_lib.read_saved(workdir)["seed"]
    return begun


FROZEN = "frozen"
"""Where a checkpoint's metadata says what it leaves out."""


def frozen_names(state: TrainState) -> list[str]:
    """Names of the parameters that a checkpoint leaves out: "policy/layers/qkv"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.frozen)
    return ["/".join(step.key for step in path) for path, _ in leaves]


def items_of(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of what is trained: the policy by itself, so that an evaluation needs to read nothing
    else, and the rest. What is frozen is where the run's first weights are."""
    critic = {name: part for name, part in state.trainable.items() if name == "critic"}
    return {
        "policy": state.trainable["policy"],
        "learner": {**critic, "opt_state": state.opt_state, "step": state.step},
    }


def state_of(items: Mapping[str, Any], frozen: dict[str, Any]) -> TrainState:
    """The state that `items_of` took apart, with what it has that isn't trained."""
    learner = items["learner"]
    trainable = {"policy": items["policy"], **{name: part for name, part in learner.items() if name == "critic"}}
    return TrainState(trainable, frozen, opt_state=learner["opt_state"], step=learner["step"])


def resume(
    workdir: Path,
    checkpoints: Checkpoints,
    fresh: TrainState,
    start: Progress,
    *,
    checkpoint_every: int,
    tell: Callable[[str], None],
    accept: bool = False,
) -> tuple[TrainState, Progress]:
    """The newest state that can be read, or `fresh` where the run has none yet; drops what was written past it.

    Args:
      workdir: the run's folder.
      checkpoints: its checkpoints. A damaged one is moved aside, and the one before it is used.
      fresh: the state at iteration 0, on its devices.
      start: the progress at iteration 0.
      checkpoint_every: iterations between checkpoints.
      tell: prints a line.
      accept: goes on with another reference policy too.

    Raises:
      RunError: there are checkpoints, and none can be read; or iterations are recorded and their checkpoints are gone.
      ConfigError: the newest checkpoint is of another model or another reference policy.
    """
    newest = newest_state(checkpoints, fresh, start.reference, tell, accept=accept)
    if newest is None:
        check_nothing_was_saved(workdir, _recorded(workdir), checkpoint_every, "iterations")
        state, progress = fresh, start
    else:
        state, told = newest
        # A checkpoint of an earlier version lacks what is new since, which has its default then.
        names = [field.name for field in dataclasses.fields(Progress)]
        progress = Progress(**{name: told[name] for name in names if name in told})
        progress = dataclasses.replace(progress, reference=start.reference)
        tell(f"going on from iteration {progress.iteration} ({checkpoints.folder})")
    broadcast_from_first(lambda: drop_after(workdir, progress.iteration))
    return state, progress


def newest_state(
    checkpoints: Checkpoints,
    fresh: TrainState,
    reference: str | None,
    tell: Callable[[str], None],
    *,
    accept: bool = False,
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest state that can be read, and the metadata of its checkpoint; None where there is none.

    Args:
      checkpoints: a damaged one is moved aside, with a line, and the one before it is used.
      fresh: the state that the run begins with, on its devices.
      reference: `reference_hash` of that state's policy.
      tell: prints a line.
      accept: goes on with another reference policy too.

    Raises ConfigError where the newest is of another model or another reference policy, or isn't finite.
    """
    for step in reversed(checkpoints.steps()):
        try:
            told = checkpoints.metadata(step)
            before = told.get("reference")
            if not accept and _others(before, reference, fresh.params["policy"]):
                raise ConfigError(
                    f"checkpoint {step} in {checkpoints.folder} belongs to a run that began with other weights than"
                    f" config.model.init (or lora_init) now gives (hash {before}, now {reference}): put those back, or"
                    " give another --workdir"
                )
            items = checkpoints.restore(step, items_of(fresh))
            check_params(f"checkpoint {step} in {checkpoints.folder}", items)
            return state_of(items, fresh.frozen), told
        except DamagedCheckpointError as error:
            tell(f"{error}; moved to {checkpoints.set_aside(step)}, trying the one before it")
    return None


def check_nothing_was_saved(workdir: Path, recorded: int, checkpoint_every: int, unit: str) -> None:
    """Raises RunError where a run that has no checkpoint to go on from has had one: it never starts afresh in silence.

    Args:
      recorded: iterations or steps (`unit`) that metrics.jsonl tells of.
      checkpoint_every: so many between checkpoints.
    """
    # A save waits for the one before it: so many records mean that a first checkpoint was complete.
    if (workdir / ("damaged_" + CHECKPOINTS)).exists() or recorded > 2 * checkpoint_every:
        raise RunError(
            f"{workdir} has records of {recorded} {unit} and no checkpoint that can be read; "
            "start again with another --workdir"
        )


def _recorded(workdir: Path) -> int:
    """Iterations that metrics.jsonl tells of."""
    try:
        return len(read_metrics(workdir))
    except FileNotFoundError:
        return 0


def drop_after(workdir: Path, iteration: int) -> None:
    """Removes episodes and validations of later iterations: the run makes them again. Metrics: see MetricsWriter."""
    for step in episode_io.saved_steps(workdir):
        if step >= iteration:
            episode_io.episodes_path(workdir, step).unlink()
    for folder, suffix in (("episodes", ".jsonl.gz"), ("evaluations", ".json")):
        for path in (workdir / folder).glob(f"valid_*{suffix}"):
            number = path.name.removeprefix("valid_").removesuffix(suffix)
            if number.isdigit() and int(number) > iteration:
                path.unlink()


def drop_scores(workdir: Path) -> None:
    """Removes the evaluations before and after training, so that both are repeated on the same problems."""
    for path in (workdir / "evaluations").glob("*.json"):
        if not path.name.startswith("valid_"):
            path.unlink()


def find_checkpoint(workdir: Path, name: str) -> int:
    """The iteration (of fine-tuning: the step) of a checkpoint that is called "best", "last" or by it.

    Raises ConfigError for none.
    """
    if not (workdir / CHECKPOINTS).is_dir():
        raise ConfigError(f"--workdir: {workdir} has no checkpoints yet")
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise ConfigError(f"--workdir: {workdir} has no checkpoint yet")
        best = checkpoints.metadata(steps[-1])["best_iteration"]
    if name == "best" and best is None:
        nothing = "nothing was validated (config.eval.every)"
        if command_of(workdir) == SFT:
            nothing = "fine-tuning held no examples out (config.sft.valid_share)"
        raise ConfigError(f"--checkpoint=best: {nothing}; use --checkpoint=last")
    chosen = {"best": best, "last": steps[-1]}.get(name, int(name) if name.isdecimal() else None)
    if chosen not in steps:
        raise ConfigError(f"--checkpoint={name}: give best, last or one of {', '.join(map(str, steps))}")
    return chosen


def saved_policy(
    workdir: Path, name: str, like: Params, first: Callable[[], Params], cast_to: Sequence[Any] = ()
) -> Params:
    """The policy of a checkpoint (`find_checkpoint`) as `like` has it; it will be cast to `cast_to`.

    `first` gives the weights that the run started from; it is asked where some of them were frozen. Raises ConfigError
    for no such checkpoint, for one that isn't finite in these dtypes, or where `first` gives other weights.
    """
    chosen = find_checkpoint(workdir, name)
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        told = checkpoints.metadata(chosen)
        left_out = told.get(FROZEN, ())
        trainable, _ = partition({"policy": like}, lambda path: "/".join(path) not in left_out)
        policy = checkpoints.restore(chosen, trainable)
        check_params(f"checkpoint {chosen} in {checkpoints.folder}", policy, cast_to)
        if not left_out:
            return policy["policy"]
        begun = first()
        _check_beside(checkpoints, chosen, begun)
        return combine(policy, partition({"policy": begun}, lambda path: "/".join(path) not in left_out)[1])["policy"]


def check_first_weights(workdir: Path, first: Params) -> None:
    """Raises ConfigError where a run's checkpoints were trained beside other weights than `first`."""
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.latest is not None:
            _check_beside(checkpoints, checkpoints.latest, first)


def _check_beside(checkpoints: Checkpoints, step: int, first: Params) -> None:
    if _others(checkpoints.metadata(step).get("reference"), reference_hash(first), first):
        raise ConfigError(
            f"checkpoint {step} in {checkpoints.folder} holds what was trained beside other weights than"
            " config.model.init (or lora_init) now gives: put those back"
        )

"""The README.md of an exported model: what it is, how to use it, and what the run that made it did and scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

_USE = """\
```python
{imports}

tokenizer = AutoTokenizer.from_pretrained("{name}")
{load}
messages = [{{"role": "user", "content": "Write a Python function that adds two numbers."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=512)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""
RANDOM = "random weights"
_AUTO = "from transformers import AutoModelForCausalLM, AutoTokenizer"
_WHOLE = 'model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")'
_BESIDE = """\
base = AutoModelForCausalLM.from_pretrained("base", dtype="auto")  # the folder that the command above has written
model = PeftModel.from_pretrained(base, "{name}")"""
_BASE = """\
The folder holds adapters alone. The weights that they belong beside, {source}, aren't taken from the Hugging Face Hub.
This writes them, from the run that trained the adapters, as a folder that `transformers` loads:

```
python -m rlef_jax.export --workdir=RUN --base --output=base
```

Without `--base` it writes the whole model, with the adapters merged."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """A run, for the card of a policy that it trained.

    Attributes:
      iteration: after which the policy was saved; of a run of supervised fine-tuning the step.
      of: how many iterations the configuration asks for.
      scored: the iteration whose policy the table's scores "after RLEF" are of; None where that isn't known.
      table: the run's table; "" where it has none.
      config: the configuration.
      fine_tuned: it was supervised fine-tuning, not RLEF.
    """

    iteration: int
    of: int
    scored: int | None
    table: str
    config: Mapping[str, Any]
    fine_tuned: bool = False


def model_card(
    name: str,
    source: str,
    *,
    base_model: str = "",
    license: str = "",
    run: RunFacts | None = None,
    adapters: bool = False,
) -> str:
    """The card's text.

    Args:
      name: the repository, or the folder, that the example loads.
      source: the weights' files, as the configuration names them.
      base_model: OWNER/NAME of what it was made from; "" leaves the field out.
      license: lines of YAML that say the base model's licence.
      run: None for weights that were only converted.
      adapters: the folder holds adapters alone. Beside a base of the Hub `transformers` loads them if `peft` is
        installed; of another one the card says how to get it.
    """
    kind = [] if run is None else ["sft"] if run.fine_tuned else ["rlef", "reinforcement-learning"]
    tags = ["code", *kind, "rlef_jax"]
    front = [f"library_name: {'peft' if adapters else 'transformers'}", "pipeline_tag: text-generation"]
    front += [f"base_model: {json.dumps(base_model)}"] if base_model else []
    front += license.splitlines() + ["tags:", *(f"- {tag}" for tag in tags)]
    origin = base_model or source or RANDOM
    parts = [_front(front), f"# {name.rpartition('/')[2]}", _about(origin, run)]
    imports, load = _AUTO, _WHOLE
    if adapters and not base_model:
        parts += ["## The base", _BASE.format(source=f"`{source}`" if source else "which were drawn at random")]
        imports, load = f"from peft import PeftModel\n{_AUTO}", _BESIDE
    parts += ["## Use", _USE.format(imports=imports, load=load.format(name=name), name=name)]
    if run is not None:
        parts += ["## Evaluation", _evaluation(run), "## Configuration", _details(run.config)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _front(lines: list[str]) -> str:
    return "\n".join(["---", *lines, "---"])


def _about(origin: str, run: RunFacts | None) -> str:
    if run is None:
        what = origin.capitalize() if origin == RANDOM else f"The weights of {origin}"
        return f"{what}, converted by rlef_jax. Nothing was trained."
    if run.fine_tuned:
        return (
            f"{origin}, fine-tuned by rlef_jax: next-token prediction on the responses of dialogues"
            f" (sft.source = {run.config['sft.source']}). This is the policy after step {run.iteration}."
        )
    return (
        f"{origin}, trained by rlef_jax with RLEF (Gehring et al., *RLEF: Grounding Code LLMs in Execution Feedback"
        " with Reinforcement Learning*, ICML 2025): the model writes a program, sees which public tests it fails, and"
        f" tries again. This is the policy after iteration {run.iteration} of {run.of}."
    )


def _evaluation(run: RunFacts) -> str:
    if not run.table:
        return "The run evaluated nothing."
    text = f"```\n{run.table}\n```"
    if run.scored is not None and run.scored != run.iteration:
        text += f"\n\nScores after RLEF are those of iteration {run.scored}, not of this policy."
    return text


def _details(config: Mapping[str, Any]) -> str:
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
    return f"<details><summary>Every value of the run</summary>\n\n```\n{text}\n```\n\n</details>"

"""What is imported and exported again has the same bytes, from a run too, and names what it can't do."""

from __future__ import annotations

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

from rlef_jax import config as config_lib
from rlef_jax import export
from rlef_jax.analysis.summary import summary_table, write_summary
from rlef_jax.dialog.load import load_chat
from rlef_jax.errors import ConfigError
from rlef_jax.export import export_run, export_weights
from rlef_jax.model import hf_export
from rlef_jax.model.gguf_file import GGUFFile
from rlef_jax.model.hf_export import tensor_reader, write_model
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.safetensors_file import write_safetensors
from rlef_jax.model.weights import load_params, resolve
from rlef_jax.training.build import build_policy, with_model_shape
from rlef_jax.training.checkpoint import Checkpoints
from tests.helpers.byte_bpe import TEMPLATES, write_tokenizer
from tests.helpers.hf_folder import write_folder
from tests.helpers.hub_stub import TOKEN, hub
from tests.model.test_gguf_file import write_gguf
from tests.parity import cases


def mixed_folder(folder, config):
    """bfloat16 matrices, float32 norms, a float16 embedding: as the file has it, so it must come back."""
    write_folder(folder, config)
    weights = HFFolder(folder)
    kinds = {name: "F32" if "norm" in name else "F16" if "embed" in name else "BF16" for name in weights.shapes}
    tensors = {name: np.array(weights.read(name)) for name in weights.shapes}
    entries = {name: (kinds[name], weights.shapes[name]) for name in weights.shapes}
    write_safetensors(folder / "model.safetensors", entries, tensors.__getitem__)
    return folder


def content(folder):
    """{name: (dtype, shape, bytes)}."""
    weights = HFFolder(folder)
    return {name: (weights.dtypes[name], weights.shapes[name], weights.read(name).tobytes()) for name in weights.shapes}


@pytest.mark.parametrize("family", ["llama", "llama tie_word_embeddings", "qwen2", "qwen3"])
def test_import_and_export_keep_every_byte(family, tmp_path, quick_compilation):
    source = HFFolder(mixed_folder(tmp_path / "source", cases.FAMILIES[family]))
    params = load_pretrained(source, source.cfg)
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", source.cfg, tensor_reader(params, source.cfg), like=source, most=4000)
    assert content(tmp_path / "out") == content(tmp_path / "source")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert HFFolder(tmp_path / "out").cfg == source.cfg


def a_run(tmp_path, init, **overrides):
    """A workdir with the policy that the run started from as checkpoint 2, and one that moved a little as 4."""
    config = config_lib.load("configs/tiny.py", overrides={"model.init": str(init)} | overrides)
    config = with_model_shape(config)
    tmp_path.mkdir()
    config_lib.save(config, tmp_path)
    params = build_policy(config).params
    moved = jax.tree.map(lambda a: a, params)
    moved["layers"]["gate"] = moved["layers"]["gate"].at[1].add(1.0)
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step, policy in ((2, params), (4, moved)):
            checkpoints.save(step, {"policy": policy}, {"best_iteration": 2}, score=float(-step))
    return tmp_path


def test_a_runs_checkpoint_becomes_a_folder(tmp_path, quick_compilation):
    source = mixed_folder(tmp_path / "source", cases.LLAMA | {"vocab_size": 640})
    write_tokenizer(source, TEMPLATES["chatml"])
    (source / "generation_config.json").write_text('{"eos_token_id": [7]}')
    (source / "LICENSE").write_text("Take it.")
    workdir = a_run(tmp_path / "run", source)
    export_run(workdir, tmp_path / "first", checkpoint="best")
    export_run(workdir, tmp_path / "last")
    before, first, last = (content(tmp_path / name) for name in ("source", "first", "last"))
    assert first == before
    assert {name for name in last if last[name] != before[name]} == {"model.layers.1.mlp.gate_proj.weight"}
    copied = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE")
    assert {path.name for path in (tmp_path / "first").iterdir()} == {*copied, "model.safetensors", "README.md"}
    for name in copied:
        assert (tmp_path / "first" / name).read_bytes() == (source / name).read_bytes()
    export_run(workdir, tmp_path / "bf16", dtype="bfloat16")
    assert {dtype for dtype, _, _ in content(tmp_path / "bf16").values()} == {"BF16"}
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match=r"--output: .*bf16 exists and isn't an empty folder"):
        export_run(workdir, tmp_path / "bf16")
    with pytest.raises(ConfigError, match="--checkpoint=9: give best, last or one of 2, 4"):
        export_run(workdir, tmp_path / "none", checkpoint="9")


def test_a_template_that_the_run_named_goes_with_its_policy(tmp_path, quick_compilation):
    source = write_folder(tmp_path / "source", cases.LLAMA | {"vocab_size": 640})
    write_tokenizer(source, TEMPLATES["chatml"])
    (template := tmp_path / "other.jinja").write_text(TEMPLATES["qwen25"])
    export_run(a_run(tmp_path / "run", source, **{"model.chat": str(template)}), tmp_path / "out")
    assert load_chat(str(tmp_path / "out")).first_prompt("x") == load_chat(str(source), str(template)).first_prompt("x")
    assert load_chat(str(tmp_path / "out")).first_prompt("x") != load_chat(str(source)).first_prompt("x")


def front_matter(card):
    return yaml.safe_load(card.removeprefix("---\n").partition("\n---\n")[0])


def test_the_card_says_what_the_run_was_and_scored(tmp_path, quick_compilation):
    config = cases.LLAMA | {"vocab_size": 640, "_name_or_path": "someone/Small-1B"}
    source = write_folder(tmp_path / "source", config)
    write_tokenizer(source, TEMPLATES["chatml"])
    (source / "README.md").write_text(
        "---\nlanguage: en\nlicense: other\nlicense_name: small\n---\n# Small\nlicense: no\n"
    )
    workdir = a_run(tmp_path / "run", source)
    export_run(workdir, tmp_path / "out", name="me/small-rlef")
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "someone/Small-1B",
        "license": "other", "license_name": "small", "tags": ["code", "rlef", "reinforcement-learning", "rlef_jax"],
    }  # fmt: skip
    assert "\n# small-rlef\n" in card and 'from_pretrained("me/small-rlef")' in card
    saved = config_lib.load_saved(workdir)
    assert "someone/Small-1B, trained by rlef_jax" in card and f"iteration 4 of {saved.train.iterations}." in card
    for key, value in config_lib.flat(saved).items():
        assert f"\n{key} = {json.dumps(value)}\n" in card
    assert "The run evaluated nothing." in card
    summary = {"warm_start": {"1@1": 1.0, "1@3": 2.0, "1@3_ci": [1, 3]}, "rlef": {"1@3": 44.4, "1@3_ci": [40, 50]}}
    write_summary(workdir, summary)
    (workdir / "evaluations").mkdir()
    (workdir / "evaluations" / "rlef.json").write_text(json.dumps({"version": 2 * saved.ppo.updates}))
    for checkpoint, other in (("best", False), ("last", True)):
        export_run(workdir, tmp_path / checkpoint, checkpoint=checkpoint, base_model="me/other")
        card = (tmp_path / checkpoint / "README.md").read_text()
        assert summary_table(summary) in card and front_matter(card)["base_model"] == "me/other"
        assert ("Scores after RLEF are those of iteration 2, not of this policy." in card) is other
        assert f"\n# {checkpoint}\n" in card


LORA = {"model.lora_rank": 2, "model.lora_targets": ("down_proj",)}


def test_the_card_of_adapters_says_how_to_get_a_base_that_is_not_on_the_hub(
    tmp_path, quick_compilation, monkeypatch, capsys
):
    workdir = a_run(tmp_path / "run", "package:warm_start", **LORA)  # an .npz file
    export_run(workdir, tmp_path / "adapters", adapters=True)
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["code", "rlef", "reinforcement-learning",
                                                                            "rlef_jax"],
    }  # fmt: skip
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert "beside, `package:warm_start`, aren't taken from the Hugging Face Hub." in card
    assert "\nfrom peft import PeftModel\n" in card and 'PeftModel.from_pretrained(base, "adapters")' in card
    [line] = [line for line in card.splitlines() if line.startswith("python -m rlef_jax.export")]
    command = line.replace("RUN", str(workdir)).replace("=base", f"={tmp_path / 'base'}").split()[2:]
    monkeypatch.setattr("sys.argv", command)
    export.main()
    base, cfg = HFFolder(tmp_path / "base"), build_policy(config_lib.load("configs/tiny.py")).cfg
    warm_start = load_params(resolve("package:warm_start", ".npz", "model.init"), cfg)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(base, base.cfg), warm_start)
    card = (tmp_path / "base" / "README.md").read_text()
    assert "The weights of package:warm_start, converted by rlef_jax. Nothing was trained." in card
    monkeypatch.setattr("sys.argv", [*command, "--base-model=runs/x/policy.npz"])
    with pytest.raises(SystemExit):
        export.main()
    assert "--base-model: 'runs/x/policy.npz' is no OWNER/NAME of a model on the Hub" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["someone/Small-1B", ""])
def test_adapters_of_a_folder_name_it_and_the_hubs_model_alone_is_in_the_cards_metadata(tmp_path, name):
    source = write_folder(tmp_path / "source", cases.LLAMA | {"vocab_size": 640, "_name_or_path": name})
    write_tokenizer(source, TEMPLATES["chatml"])
    export_run(a_run(tmp_path / "run", source, **LORA), tmp_path / "out", adapters=True)
    card = (tmp_path / "out" / "README.md").read_text()
    named = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (named, front_matter(card).get("base_model", "")) == (name or str(source), name)
    assert ("## The base" in card) is ("PeftModel" in card) is (not name)


@pytest.mark.parametrize("flag", ["adapters", "base"])
def test_a_run_of_all_weights_has_no_adapters(tmp_path, flag):
    workdir = a_run(tmp_path / "run", "package:warm_start")
    with pytest.raises(ConfigError, match=rf"--{flag}: .* trains all weights \(config.model.lora_rank=0\): leave it"):
        export_run(workdir, tmp_path / "out", **{flag: True})


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "source", cases.LLAMA | {"vocab_size": 640})
    write_tokenizer(source, TEMPLATES["chatml"])
    (empty := tmp_path / "empty").mkdir()

    def fails(kind, message):
        for output in (tmp_path / "new", empty):
            with pytest.raises(kind, match=message):
                export_weights(str(source), output, shard_bytes=40_000)
        assert not (tmp_path / "new").exists() and not list(empty.iterdir())

    written = []

    def full_disk(path, entries, read):
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write_safetensors(path, entries, read)

    with monkeypatch.context() as patched:
        patched.setattr(hf_export, "write_safetensors", full_disk)
        fails(OSError, "No space left")
        assert written[0].name == "model-00001-of-00004.safetensors"
    tensors = {name: np.array(HFFolder(source).read(name)) for name in HFFolder(source).shapes}
    tensors["model.norm.weight"][3] = np.nan
    entries = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(source / "model.safetensors", entries, tensors.__getitem__)
    fails(ConfigError, r"model\.norm\.weight holds nan")


def test_the_command_pushes_what_it_wrote(tmp_path, monkeypatch, capsys):
    source = write_folder(tmp_path / "source", cases.LLAMA | {"vocab_size": 640})
    write_tokenizer(source, TEMPLATES["chatml"])

    def command(*options):
        monkeypatch.setattr("sys.argv", ["export", f"--init={source}", f"--output={tmp_path / 'out'}", *options])
        try:
            export.main()
        except SystemExit as end:
            return end.code, capsys.readouterr()
        return 0, capsys.readouterr()

    assert "argument --shard-size: 'much' is no size such as 5GB" in command("--shard-size=much")[1].err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub({"/repos/create": (403, "no right")}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        code, output = command("--push=me/small")
    assert (
        code == 2 and output.err.startswith("error: --push: ") and "403: " in output.err and output.err.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        code, output = command("--push=me/small", "--shard-size=40KB")
    assert (code, output.out) == (0, f"{tmp_path / 'out'}\n{server.url}/me/model/commit/1\n")
    assert server.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len([name for name in server.files if name.endswith(".safetensors")]) == 4
    assert content(tmp_path / "out") == content(source)


def test_a_gguf_file_becomes_a_folder(tmp_path, quick_compilation, monkeypatch):
    write_gguf(tmp_path / "model.gguf", cases.LLAMA)
    with pytest.raises(ConfigError, match="its tokenizer is None/None"):
        export_weights(str(tmp_path / "model.gguf"), tmp_path / "out")
    with pytest.raises(ConfigError, match="neither a Hugging Face folder nor a .gguf file"):
        export_weights("package:warm_start", tmp_path / "out")


@pytest.mark.slow
def test_smollm2_becomes_a_folder(smollm2_path, tmp_path):
    """Its weights, tokenizer and template are the file's; in bfloat16 they are rounded."""
    export_weights(str(smollm2_path), tmp_path / "out", dtype="bfloat16")
    file, folder = GGUFFile(smollm2_path), HFFolder(tmp_path / "out")
    theirs, ours = load_chat(str(smollm2_path)), load_chat(str(tmp_path / "out"))
    assert ours.style == theirs.style
    for messages in cases.CONVERSATIONS:
        text = messages[-1]["content"]
        assert ours.first_prompt(text) == theirs.first_prompt(text)
    assert folder.cfg == file.cfg
    name = "model.layers.7.self_attn.k_proj.weight"
    np.testing.assert_array_equal(folder.read(name), file.read(name).astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [2, 0]}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The weights of {smollm2_path}, converted by rlef_jax. Nothing was trained." in card
    assert front_matter(card)["tags"] == ["code", "rlef_jax"] and "base_model" not in front_matter(card)


def test_the_tiny_model_becomes_a_folder(tmp_path, quick_compilation):
    """Its own tokenizer is copied; no published chat format is in it."""
    config = config_lib.load("configs/tiny.py")
    config_lib.save(config, tmp_path)
    policy = build_policy(config)
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"policy": policy.params}, {"best_iteration": None})
    export_run(tmp_path, tmp_path / "out")
    folder = HFFolder(tmp_path / "out")
    again = load_pretrained(folder, folder.cfg)
    jax.tree.map(np.testing.assert_array_equal, again, policy.params)
    assert (folder.cfg.family, policy.cfg.family) == ("llama", "")
    assert dataclasses.replace(folder.cfg, family="") == policy.cfg
    assert (tmp_path / "out" / "tokenizer.model").is_file()

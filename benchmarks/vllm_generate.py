"""gpu_check.py's baseline, in an environment that has vLLM: the orders and answers of `torch_generate.py`.

Never run yet: no machine of ours had vLLM and a card.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.platforms import current_platform


def build(order: dict, folder: str) -> LLM:
    """A Llama of the order's sizes with random weights."""
    sizes = order["model"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "vocab_size": sizes["vocab_size"], "hidden_size": sizes["d_model"], "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"], "num_key_value_heads": sizes["n_kv_heads"],
        "head_dim": sizes["d_head"], "intermediate_size": sizes["d_ff"], "tie_word_embeddings": sizes["tie_embeddings"],
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": order["dtype"],
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    Path(folder, "config.json").write_text(json.dumps(config))
    return LLM(
        model=folder, load_format="dummy", skip_tokenizer_init=True, dtype=order["dtype"], max_num_seqs=order["rows"],
        enable_prefix_caching=False,
    )  # fmt: skip


def main() -> None:
    """Answers one order after the other; they share a model."""
    llm = None
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            order = json.loads(line)
            llm = llm or build(order, folder)
            rows, prompt, vocabulary = order["rows"], order["prompt"], order["model"]["vocab_size"]
            prompts = [
                {"prompt_token_ids": [1 + (97 * row + 31 * i + number) % (vocabulary - 1) for i in range(prompt)]}
                for row in range(rows)
            ]
            asked = SamplingParams(
                temperature=1.0, max_tokens=order["new"], ignore_eos=True, logprobs=0, detokenize=False
            )
            began = time.perf_counter()
            answers = llm.generate(prompts, asked, use_tqdm=False)
            seconds = time.perf_counter() - began
            assert all(len(answer.outputs[0].token_ids) == order["new"] for answer in answers)
            print(json.dumps({"seconds": seconds, "device": current_platform.device_type}), flush=True)


if __name__ == "__main__":
    main()

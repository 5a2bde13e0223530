"""Text and tokens of a dialogue: prompts, feedback, code extraction, tokenizers, chat formats."""

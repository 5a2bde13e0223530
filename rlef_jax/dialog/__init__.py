"""The words and tokens of a dialogue: prompts, feedback, code extraction, tokenizer, chat format."""

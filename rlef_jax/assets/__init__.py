"""Files that ship with the package: the tiny model's tokenizer and warm start."""

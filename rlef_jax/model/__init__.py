"""The Llama-family transformer as plain functions over a pytree of arrays."""

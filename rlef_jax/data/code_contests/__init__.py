"""CodeContests (Li et al., 2022): built from its published files, then read at random.

    python -m rlef_jax.data.code_contests --source=FOLDER --output=FOLDER

`release` reads the published forms, `examples` turns problems into records and back, `build` writes the shards,
`reader` and `order` say which problem an episode gets, `judge_check` and `references` are about reference solutions.
See docs/code_contests.md.
"""

"""CodeContests (Li et al., 2022): built once from its published files, then read in random order.

    python -m rlef_jax.data.code_contests --source=FOLDER --output=FOLDER

`release` reads the published forms, `examples` turns problems into records and back, `build` writes the shards,
`reader` and `order` select the problem of each episode, `judge_check` and `references` run the reference solutions to
measure the judge's errors. See docs/code_contests.md.
"""

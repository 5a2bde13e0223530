"""A run's files made readable: tables, plots, error kinds over turns. Reads a workdir, needs no device."""

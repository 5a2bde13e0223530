"""Tables and plots of a run, read from its workdir. Needs no device."""

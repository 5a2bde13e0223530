"""Turn-level PPO: packing, returns, losses, the update and its metrics (RLEF, section 2.2 and appendix A.1)."""

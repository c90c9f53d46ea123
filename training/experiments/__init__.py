"""Many runs compared: grids, sweeps, plans."""

"""How trajectories come in from a host."""

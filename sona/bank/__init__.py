"""The reasoning bank: clusters of trajectories that last, and what is near to a query."""

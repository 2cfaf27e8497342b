"""Many runs: the grid that a command line means, what it will take, and carrying it out. Imports no torch."""

"""How fast training is: a real epoch against a bare loop, and the steps of methods against each other."""

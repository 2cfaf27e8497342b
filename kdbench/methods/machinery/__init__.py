"""What all methods share: the step, the stages, the meters, the optimisers. Nobody who adds a method has to read it."""

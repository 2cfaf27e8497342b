"""What methods share and no author of a method needs to read: the step, the stages, the meters, the optimisers."""

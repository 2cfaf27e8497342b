"""From a checked configuration to `RunSpec`: one run, with everything that is known of it before it starts."""

"""From a `RunSpec` to its record: dependencies, data, networks, method, training, results."""

"""The configuration: composing it with Hydra, checking it against the rules in `conf/`, explaining what is wrong."""

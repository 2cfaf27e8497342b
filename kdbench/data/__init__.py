"""Data: source -> imbalance -> noise -> split -> loader. Independent of methods and models."""

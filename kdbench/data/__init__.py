"""Data: source -> imbalance -> noise -> split -> loader. Knows no model and no method."""

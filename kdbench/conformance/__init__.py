"""The rules that every method keeps, as functions that `kdbench check` and tests call."""

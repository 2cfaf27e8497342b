"""kdbench: compare knowledge-distillation methods and believe the result."""

__version__ = "0.1.0"

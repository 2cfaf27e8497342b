"""kdbench: compare knowledge-distillation methods and believe the result."""

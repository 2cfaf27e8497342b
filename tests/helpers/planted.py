"""A method with an accident: what launchers of real sweeps meet, at will."""

import os
import signal

from kdbench.methods.ce import CE


class KilledWhenLarge(CE):
    """Cross-entropy, but the process is killed in the first step of a network of more than 100,000 parameters."""

    def losses(self, student, teacher, batch):
        if sum(parameter.numel() for parameter in self.student.parameters()) > 100_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(student, teacher, batch)

"""A method that crashes on demand, for tests of launchers and sweeps."""

import os
import signal

from kdbench.methods.ce import CE


class KilledWhenLarge(CE):
    """Cross-entropy, but the process is killed in the first step of a network with more than 100,000 parameters."""

    def losses(self, student, batch):
        if sum(parameter.numel() for parameter in self.student.parameters()) > 100_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(student, batch)

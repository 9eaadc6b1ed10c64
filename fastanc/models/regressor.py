"""What FitNets puts around a student: a layer that its stage map passes through."""

from __future__ import annotations

from torch import nn

from fastanc.batch import Outputs
from fastanc.models.taps import Tapped, Wrapper


class Regressed(Wrapper):
    """A tapped student whose stage map passes through a regressor; `.student` is what is exported."""

    def __init__(self, student: Tapped, stage: int, regressor: nn.Module):
        super().__init__()
        self.student = student
        self.stage = stage
        self.regressor = regressor

    def changed(self, out: Outputs) -> Outputs:
        """Return the student's outputs with the stage's map regressed."""
        assert out.stages is not None
        stages = list(out.stages)
        stages[self.stage] = self.regressor(stages[self.stage])
        return out._replace(stages=tuple(stages))

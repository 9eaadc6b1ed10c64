"""What a game may put around a discriminator: its view of the samples, its memory, its copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fastanc.losses_of_games import slope_penalty
from fastanc.models.game_balance import Balance, Moments
from fastanc.models.memories import Ring


class Replay(Ring):
    """Earlier rows of the teacher, drawn at random (Shrivastava et al. 2017 keep those of the other side)."""

    seen: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, values: Tensor) -> None:
        """Put rows [B, width] in the places of the oldest."""
        super().push(values)
        self.seen.add_(len(values)).clamp_max_(len(self.rows))

    def drawn(self, instead: Tensor) -> Tensor:
        """Return as many rows as `instead` has [B, width], or these where nothing was seen yet; no wait."""
        u = torch.rand(len(instead), device=self.rows.device)
        # A draw of 1 - 2^-24 times a large number may round up to it.
        places = torch.minimum((u * self.seen).long(), (self.seen - 1).clamp_min(0))
        rows = self.rows.index_select(0, places).to(instead.dtype)
        return torch.where(self.seen > 0, rows, instead)


class Judge(nn.Module):
    """One discriminator or several of one layout: samples [B, W] (and conditions [B, K]) -> outputs [B, n]."""

    made: Tensor

    def __init__(
        self,
        build: Callable[[int], nn.Sequential],
        width: int,
        *,
        copies: int = 1,
        standardise: str = "none",
        classes: int = 0,
        conditioned_by: str = "projection",
        spectral: bool = False,
        noise: float = 0.0,
        noise_steps: int = 0,
        replay: int = 0,
    ) -> None:
        """Build the discriminators.

        Args:
            build: width -> layers [B, width] -> [B, 1], the last of them linear.
            width: W of the samples.
            copies: n, each with weights of its own.
            standardise: none; batch, by mean and deviation of the samples of a pass; teacher, by its running moments.
            classes: K of the conditions; 0 without.
            conditioned_by: projection, at the last hidden layer (Miyato & Koyama 2018), or concatenation (Mirza &
                Osindero 2014).
            spectral: every layer divided by its largest singular value (Miyato et al. 2018).
            noise: standard deviation of Gaussian noise on every sample, in deviations of the teacher's.
            noise_steps: moves over which it falls to nothing; 0 keeps it.
            replay: rows of the teacher that are remembered.
        """
        super().__init__()
        projects = classes > 0 and conditioned_by == "projection"
        self.standardise, self.noise, self.noise_steps = standardise, noise, noise_steps
        self.networks = nn.ModuleList(
            build(width + (classes if classes and not projects else 0)) for _ in range(copies)
        )
        hidden = [network[-1].in_features for network in self.networks]  # type: ignore[index]
        self.embeds = nn.ModuleList(
            nn.Linear(classes, size, bias=False) for size in (hidden if projects else ())
        )
        if spectral:
            for part in (*self.networks.modules(), *self.embeds.modules()):
                if isinstance(part, nn.Linear | nn.Conv1d):
                    spectral_norm(part)
        keeps = standardise == "teacher" or (noise > 0 and standardise == "none")
        self.moments = Moments(width) if keeps else None
        self.replay = Replay(replay, width + classes) if replay else None
        self.balance = Balance()
        self.register_buffer("made", torch.zeros((), dtype=torch.int64))

    def prepared(self, samples: Tensor) -> Tensor:
        """Return samples [B, W] as the layers see them: standardised, and while it learns with noise."""
        deviation: Tensor | float = 1.0
        if self.moments is not None:
            mean, deviation = (value.to(samples.dtype) for value in self.moments.standard())
        if self.standardise == "batch":
            samples = F.batch_norm(samples, None, None, training=True)
        elif self.standardise == "teacher":
            samples, deviation = (samples - mean) / deviation, 1.0
        if self.noise > 0 and self.training:
            # In fp32 whatever the samples are, so that float64 sees the same draw.
            drawn = torch.randn(samples.shape, device=samples.device, dtype=torch.float32).to(samples.dtype)
            samples = samples + self._level() * deviation * drawn
        return samples

    def judged(self, prepared: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs [B, n] of prepared samples [B, W], with conditions [B, K] where there are any."""
        if condition is not None and not self.embeds:
            prepared = torch.cat([prepared, condition.to(prepared.dtype)], dim=1)
        columns = []
        for number, network in enumerate(self.networks):
            hidden = network[:-1](prepared)  # type: ignore[index]
            column = network[-1](hidden)  # type: ignore[index]
            if condition is not None and self.embeds:
                fit = self.embeds[number](condition.to(hidden.dtype)) * hidden
                column = column + fit.sum(1, keepdim=True)
            columns.append(column)
        return torch.cat(columns, dim=1)

    def slope(self, teacher: Tensor, student: Tensor | None, condition: Tensor | None) -> Tensor:
        """Return `losses_of_games.slope_penalty` at prepared samples [B, W] of the teacher.

        With the student's, at points between both, drawn evenly.
        """
        if student is not None:
            u = torch.rand(len(teacher), 1, device=teacher.device, dtype=torch.float32).to(teacher.dtype)
            teacher = u * teacher + (1 - u) * student
        prepared = self.prepared(teacher).detach().requires_grad_()
        return slope_penalty(self.judged(prepared, condition), prepared)

    def forward(self, samples: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs [B, n] of samples [B, W]."""
        return self.judged(self.prepared(samples), condition)

    def seen(self, teacher: Tensor) -> dict[str, Tensor]:
        """Return what `settle` is to take of a move of its own, from the teacher's samples [B, W]."""
        found = {} if self.moments is None else {"moments": Moments.of(teacher)}
        return found | ({"moved": teacher.new_ones(())} if self.noise_steps else {})

    @torch.no_grad()
    def settle(self, state: Mapping[str, Tensor]) -> None:
        """Take what a move has seen, the same on all processes: `seen`, or the student's `pulls` [2]."""
        if self.moments is not None and "moments" in state:
            self.moments.take(state["moments"])
        if "moved" in state:
            self.made.add_(1)
        if "pulls" in state:
            self.balance.take(state["pulls"])

    def _level(self) -> Tensor | float:
        if not self.noise_steps:
            return self.noise
        return self.noise * (1 - self.made / self.noise_steps).clamp_min(0)

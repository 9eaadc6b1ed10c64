"""Adversarial distillation as people write it, for comparison; nothing of fastanc is used here.

An ImageFolder read by PIL in DataLoader workers, the teacher run on every batch, everything eager and in fp32, and
the losses read off after every step. PyTorch's own memory format is the default, channels_last the line that a plain
loop that wants to be fast adds, as it lets cuDNN search for its kernels: a speed-up is claimed over the faster of the
two.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet
from torchvision.models.feature_extraction import create_feature_extractor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pair = tuple[Tensor, Tensor]
"""Features [B, D] and logits [B, K]."""


def loader(folder: Path, image_px: int, batch: int, workers: int, pin: bool) -> DataLoader:
    """Return random crops [B, 3, S, S] fp32 and labels, whole batches only."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(image_px),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        pin_memory=pin,
        drop_last=True,
    )


class PlainGame:
    """Torchvision ResNets as teacher and student, and a discriminator on their features (ANC, eq. 8).

    Where the features' widths differ, a linear adapter lifts the student's.
    """

    def __init__(
        self,
        teacher: ResNet,
        student: ResNet,
        device: torch.device,
        *,
        lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        dropout: float = 0.5,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        torch.backends.cudnn.benchmark = True
        nodes = {"flatten": "features", "fc": "logits"}
        self.teacher = create_feature_extractor(teacher, nodes).to(device, memory_format=memory_format).eval()
        self.student = (
            create_feature_extractor(student, nodes).to(device, memory_format=memory_format).train()
        )
        self.dropout, self.memory_format = dropout, memory_format
        width, own = teacher.fc.in_features, student.fc.in_features
        self.adapter = (nn.Linear(own, width) if own != width else nn.Identity()).to(device)
        self.discriminator = nn.Sequential(
            nn.Linear(width, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 1),
        ).to(device)
        sgd = partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.student_optimizer = sgd([*self.student.parameters(), *self.adapter.parameters()])
        self.discriminator_optimizer = sgd(self.discriminator.parameters())

    def ask_teacher(self, images: Tensor) -> Pair:
        """Run the teacher on normalised images [B, 3, S, S]."""
        with torch.no_grad():
            found = self.teacher(images)
        return found["features"], found["logits"]

    def judged(self, features: Tensor, label: float) -> Tensor:
        """Return the discriminator's cross entropy with one label for all."""
        logits = self.discriminator(features)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def step(self, images: Tensor, target: Pair | None = None) -> dict[str, float]:
        """Train discriminator, then student, on normalised images; `target` replaces the teacher's run."""
        images = images.contiguous(memory_format=self.memory_format)
        teacher_features, teacher_logits = self.ask_teacher(images) if target is None else target
        found = self.student(images)
        features = self.adapter(found["features"])

        shown = features.detach()
        discriminate = self.judged(teacher_features, 1.0) + self.judged(shown, 0.0)
        regularise = self.judged(F.dropout(shown, self.dropout), 1.0)
        self.discriminator_optimizer.zero_grad()
        (discriminate + regularise).backward()
        self.discriminator_optimizer.step()

        fool = self.judged(F.dropout(features, self.dropout), 1.0)
        data = (found["logits"] - teacher_logits).pow(2).sum(1).mean()
        self.student_optimizer.zero_grad()
        (fool + data).backward()
        self.student_optimizer.step()
        return {
            "discriminate": discriminate.item(),
            "regularise": regularise.item(),
            "fool": fool.item(),
            "data": data.item(),
        }

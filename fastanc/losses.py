"""The papers' formulas, each a pure function of tensors, accumulated in fp32 or wider.

Shapes follow the legend of `batch.py`: B batch, K classes, C channels, H W map size, D feature width.
Where a paper writes a maximisation, the function is the loss that the player *minimises*.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastanc.later import F, Tensor, nn, torch


def fp32(values: Tensor) -> Tensor:
    """Return the values in fp32, or untouched in float64: half precision never enters a sum."""
    return values if values.dtype == torch.float64 else values.float()


def _over_classes(per_logit: Tensor, reduction: str) -> Tensor:
    """Sum (or average) over classes, then average over the batch."""
    return per_logit.sum(1).mean() if reduction == "sum" else per_logit.mean()


def squared_error(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """Squared distance of two [B, K] logits (or [B, F] descriptors), mean over the batch.

    `reduction` "sum" adds up the classes as ANC eq. 3 and Ba & Caruana write it; "mean" is K times smaller
    (`F.mse_loss`).
    """
    return _over_classes((fp32(student) - fp32(teacher)).square(), reduction)


def absolute_error(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """L1 distance of two [B, K] logits, mean over the batch (CAN eq. 6: "sum"; DFAD: "mean")."""
    return _over_classes((fp32(student) - fp32(teacher)).abs(), reduction)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of [B, K] logits softened by T, mean over the batch (Hinton et al. 2015)."""
    log_p = F.log_softmax(fp32(teacher) / temperature, dim=1)
    log_q = F.log_softmax(fp32(student) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of [B, K] logits with labels [B] int64, or shares of classes [B, K], mean over the batch."""
    return F.cross_entropy(fp32(logits), labels)


def kd_terms(
    student: Tensor, teacher: Tensor, labels: Tensor | None, alpha: float, temperature: float
) -> dict[str, Tensor]:
    """The weighted terms of alpha T^2 KL + (1 - alpha) CE; a term of weight 0 is left out.

    Args:
        student: [B, K] logits.
        teacher: [B, K] logits, unread when alpha is 0.
        labels: [B] int64 or shares of classes [B, K], unread when alpha is 1.
        alpha: weight of the teacher's word, 0..1.
        temperature: softmax temperature of the KL, > 0.
    """
    terms: dict[str, Tensor] = {}
    if alpha > 0:
        terms["soft"] = alpha * soft_kl(student, teacher, temperature)
    if alpha < 1:
        assert labels is not None
        terms["labels"] = (1 - alpha) * cross_entropy(student, labels)
    return terms


def as_teacher(judged: Tensor) -> Tensor:
    """-log D(x): what D pays on the teacher, and the student for being told apart (ANC eq. 2, 7).

    `judged` are the discriminator's logits [B, 1], before any sigmoid.
    """
    return F.softplus(-fp32(judged)).mean()


def as_student(judged: Tensor) -> Tensor:
    """-log(1 - D(x)): what D pays on the student (ANC eq. 2); `judged` are D's logits [B, 1]."""
    return F.softplus(fp32(judged)).mean()


def discriminator_loss(on_teacher: Tensor, on_student: Tensor) -> Tensor:
    """BCE(D(t), 1) + BCE(D(s), 0) on the discriminator's logits [B, 1]: -L_adv of ANC eq. 2."""
    return as_teacher(on_teacher) + as_student(on_student)


def fooling_loss(on_student: Tensor, saturating: bool = False) -> Tensor:
    """What the student pays to the game: -log D(s), or the saturating log(1 - D(s)) of ANC eq. 4."""
    return -as_student(on_student) if saturating else as_teacher(on_student)


def weight_penalty(parameters: Iterable[nn.Parameter], power: int, reduction: str = "sum") -> Tensor:
    """Sum (or mean) over all entries of `|w|^power`, power 1 or 2: -R(D) / mu of ANC eq. 6 and 5."""
    entries = torch.cat([fp32(parameter).flatten() for parameter in parameters])
    powered = entries.abs() if power == 1 else entries.square()
    return powered.sum() if reduction == "sum" else powered.mean()


def judgement_measures(on_teacher: Tensor, on_student: Tensor) -> dict[str, Tensor]:
    """The discriminator's mean probabilities of teacher and student, and its share of right decisions.

    Args:
        on_teacher: [B, 1] logits of D on the teacher; [B, 1] `on_student` those on the student.

    Returns:
        d_teacher, d_student in 0..1 and `won`, 0.5 when D guesses, 1 when D tells every sample; detached.
    """
    t, s = on_teacher.detach(), on_student.detach()
    right = ((t > 0).float().mean() + (s <= 0).float().mean()) / 2
    return {"d_teacher": t.sigmoid().mean(), "d_student": s.sigmoid().mean(), "won": right}


def can_source_loss(on_teacher: Tensor, on_student: Tensor) -> Tensor:
    """-L_A of CAN: cross entropy of the source logits [B, 2]; 0 is Real (teacher), 1 is Fake (student)."""
    return _source(on_teacher, 0) + _source(on_student, 1)


def can_class_loss(on_teacher: Tensor, on_student: Tensor, labels: Tensor) -> Tensor:
    """-L_DS of CAN, -L^C of KSANC: cross entropy of D's class logits [B, K] on both sources; labels [B]."""
    return cross_entropy(on_teacher, labels) + cross_entropy(on_student, labels)


def can_fooling_loss(on_student: Tensor, saturating: bool = True) -> Tensor:
    """The student's part of L_A: log P(Fake | D(s)) as CAN eq. 7 prints it, or -log P(Real | D(s)).

    `on_student` are the two source logits [B, 2] of the student.
    """
    return -_source(on_student, 1) if saturating else _source(on_student, 0)


def _source(logits: Tensor, source: int) -> Tensor:
    return -F.log_softmax(fp32(logits), dim=1)[:, source].mean()


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps `[B, *, H, W]` to the size of the smaller, in fp32."""
    student, teacher = fp32(student), fp32(teacher)
    if student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher
    size = (min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of regressed and teacher map, both [B, C, H, W] (FitNets eq. 3 with a mean, x2)."""
    return F.mse_loss(*same_size(student, teacher))


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the unit-length spatial attentions mean_c A^2 of two maps `[B, *, H, W]`.

    Zagoruyko & Komodakis 2017 eq. 2, p = 2; the mean over positions (paper: a norm) goes with beta 1000.
    """
    student, teacher = same_size(student, teacher)
    return F.mse_loss(_attention(student), _attention(teacher))


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """FSP matrix [B, C1, C2] of two maps of one network: sum_hw F1_i F2_j / (h w) (Yim et al. eq. 1)."""
    shallow, deep = same_size(shallow, deep)
    return torch.einsum("bihw,bjhw->bij", shallow, deep) / (deep.shape[-2] * deep.shape[-1])


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of the two networks' FSP matrices; each pair holds a shallow and a deep map."""
    return F.mse_loss(flow(*student), flow(*teacher))


def one_hotness(teacher: Tensor) -> Tensor:
    """DAFL's L_oh: cross entropy of the teacher's [B, K] logits with their own arg max."""
    return cross_entropy(teacher, teacher.argmax(1))


def activation(features: Tensor) -> Tensor:
    """DAFL's L_a: minus the mean absolute feature, [B, D]: real images excite the teacher."""
    return -fp32(features).abs().mean()


def information(teacher: Tensor) -> Tensor:
    """DAFL's L_ie: sum_c p_c log10 p_c, p the batch's mean softmax of [B, K] logits; least if balanced."""
    p = F.softmax(fp32(teacher), dim=1).mean(0)
    return (p * p.clamp_min(torch.finfo(p.dtype).tiny).log10()).sum()


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """DFAD's generator loss: minus the mean absolute difference of the [B, K] logits."""
    return -absolute_error(student, teacher, "mean")

"""What a run says of itself before it trains, beside data and networks: method, schedule, cache, idle fields."""

from __future__ import annotations

from fastanc.config import Config
from fastanc.methods.base import OF_BATCH, OF_TEACHER
from fastanc.quoting import counted
from fastanc.teacher.answers import Answers, holds
from fastanc.teacher.build import break_even
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.training.extension import Extension
from fastanc.training.inputs import Input
from fastanc.training.settings import Pace


def notes_of(
    config: Config, source: Input, pace: Pace, answers: Answers | None, extension: Extension | None
) -> list[str]:
    """Return a sentence each on the method, the schedule, the teacher's rows, and on fields that need one."""
    said = (
        _method_note(config),
        _schedule_note(config, pace, extension),
        _cache_note(config, source, answers),
        _beyond(config, pace),
        _spread_note(config),
    )
    return [note for note in said if note]


def _method_note(config: Config) -> str:
    """Who moves, and what is read: whether labels are is what a reader wants to know first."""
    method = config.method
    players = [play.player for play in method.plays]
    moves = f"{', '.join(players)} move in turn" if len(players) > 1 else f"the {players[0]} alone learns"
    read = [
        f"of the teacher {', '.join(sorted(method.needs & OF_TEACHER))}" if method.needs & OF_TEACHER else "",
        ", ".join(sorted(method.needs & OF_BATCH)).replace("soft_labels", "labels"),
    ]
    labels = "" if method.needs & {"labels", "soft_labels"} else "; no label is read"
    return f"method {method.kind}: {moves}; it reads {' and '.join(filter(None, read)) or 'images'}{labels}"


def unmeasured(source: Input, num_classes: int) -> list[str]:
    """Return what is said where the validation images have labels that the networks' classes are not."""
    if source.val.labels is None or source.train.num_classes == num_classes or not num_classes:
        return []
    return [
        f"the set has {counted(source.train.num_classes, 'class')} and the networks have {num_classes}: what is"
        " measured is how often they agree, and no top-1; teacher.classes says which of a teacher's classes are"
        " the set's"
    ]


def _schedule_note(config: Config, pace: Pace, extension: Extension | None) -> str:
    schedule, optimizer = config.schedule, config.optimizer
    how = {
        "cosine": "cosine to 0",
        "constant": "constant",
        "step": f"times {schedule.gamma:g} at {', '.join(f'{share:.0%}' for share in schedule.milestones)}",
    }[schedule.name]
    if schedule.warmup_epochs:
        how = f"{how} after {counted(schedule.warmup_epochs, 'epoch')} of warm-up"
    epochs = counted(pace.schedule_steps / pace.steps_per_epoch, "epoch")
    if extension is not None:
        how = f"{schedule.extend_name} from step {extension.steps} of {extension.parent} on"
    ends = "" if pace.total_steps == pace.schedule_steps else f", of which it makes {pace.total_steps:,}"
    return (
        f"schedule: {epochs} of {counted(pace.steps_per_epoch, 'step')} of {counted(config.data.batch, 'image')} ="
        f" {counted(pace.schedule_steps, 'step')}{ends}; {optimizer.name} at {optimizer.lr:g}, {how}; a checkpoint"
        f" every {counted(pace.checkpoint_every or pace.steps_per_epoch, 'step')}"
    )


def _cache_note(config: Config, source: Input, answers: Answers | None) -> str | None:
    """How many of the rows that are asked for are there, and what keeping them saves; None without a teacher."""
    if answers is None:
        return None
    passes = config.schedule.epochs * source.order.views_per_image
    views = min(source.order.views or passes, passes)
    if not isinstance(answers, (Cached, Filling)):
        could = holds(config.method.needs & OF_TEACHER)
        advice = "; --teacher.cache fill keeps what it says for later epochs and students" if could else ""
        return f"cache: off, the teacher runs in every step, {counted(passes, 'pass')}{advice}"
    store = answers.store
    rows = views * store.num_images
    there = sum(store.present(view) for view in range(views))
    costs = break_even(store.num_images, store.row_bytes, views, passes, students=1)
    if there == rows:
        return f"cache: {store.path} has all {counted(rows, 'row')}, the teacher does not run; {costs}"
    return (
        f"cache: {store.path} has {there / rows:.1%} of {counted(rows, 'row')}, the teacher adds the others; {costs};"
        " the next student of these views needs none"
    )


def _beyond(config: Config, pace: Pace) -> str | None:
    """A sentence for the log where run.max_steps does nothing."""
    asked, schedule = config.run.max_steps, pace.schedule_steps
    if not asked or asked <= schedule:
        return None
    return (
        f"run.max_steps {asked} is beyond the schedule: the run ends after {schedule} steps, schedule.epochs makes it"
        " longer"
    )


def _spread_note(config: Config) -> str | None:
    """A sentence for the log where rows of the most probable classes are softened otherwise than they were kept."""
    others = sorted({value for value in config.method.softened_at or () if value != 1})
    if not config.top_rows or not others:
        return None
    return (
        f"teacher.rows {config.teacher.rows} keeps what all other classes have together at temperature 1, and spreads"
        f" it evenly: softened by {', '.join(f'{value:g}' for value in others)} their share is not the teacher's"
    )

"""The networks of a run, compiled as it will use them: one step rehearsed, one pass examined, and nothing moved."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.config import Config
from fastanc.teacher.answers import runs_network
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training.compiling import compile_in_place, warm_up
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.step import play
from fastanc.training.validate import examined


def compile_game(config: Config, source: Input, game: Game) -> tuple[str, ...]:
    """Compile what a run passes images through; return a sentence for each network that stays eager."""
    step, together = _fake_step(config, source), list(game.players.modules().values())
    compile_in_place(game.players["student"].module, config.run.compile_mode)
    said = [_compile_teacher(game, step, source.order.views)]
    if game.teacher is not None and game.answers is not None:
        step.target = game.teacher.online(source.device)(step)
    elif game.teacher is not None:
        together.append(game.teacher.network)

    def rehearse() -> None:
        if config.run.compile_mode != "default":
            torch.compiler.cudagraph_mark_step_begin()
        with game.players.rehearsal():
            play(game.method, game.players, step, config.run.accumulate)

    said.append(warm_up(rehearse, *together))
    if said[-1] is None:
        said.append(_compile_examined(config, source, game))
    return tuple(sentence for sentence in said if sentence)


def _compile_teacher(game: Game, batch: Batch, views: int | None) -> str | None:
    """Compile the teacher where a step will run it; a cache that has every row is not worth the minutes."""
    if game.teacher is None or (game.answers is not None and not runs_network(game.answers, views)):
        return None
    if game.answers is None:  # the method plays it, in the step that is rehearsed
        compile_in_place(game.teacher.network)
        return None
    return _compile_online(game.teacher, batch)


def compile_bench(config: Config, source: Input, teacher: FrozenTeacher) -> str | None:
    """Compile the teacher that fills a cache where run.compile asks for it; return a sentence if it stays eager."""
    return _compile_online(teacher, _fake_step(config, source)) if config.run.compile else None


def _compile_online(teacher: FrozenTeacher, batch: Batch) -> str | None:
    # Never as graphs: their outputs are overwritten in the next step, and rows wait longer to be kept.
    compile_in_place(teacher.network)
    online = teacher.online(batch.images.device)
    return warm_up(lambda: online(batch), teacher.network)


def _compile_examined(config: Config, source: Input, game: Game) -> str | None:
    """Compile what is evaluated: the student itself, inside what the game has put around it, or its average."""
    images = min(max(1, config.data.eval_batch // source.world), source.val.num_images // source.world)
    network = game.method.validated(game.kept, game.players["student"].module)
    if network._compiled_call_impl is None:
        compile_in_place(network)
    sample = _pixels(max(1, images), source.val.channels, config.data.image_px, source.device)
    with examined(network, game.autocast) as logits_of:
        return warm_up(lambda: logits_of(sample, len(sample)), network)


def _fake_step(config: Config, source: Input) -> Batch:
    size, data = source.order.batch // source.world, source.train
    if "latents" in config.method.needs:
        width = int(data.sizes(np.zeros(1, np.int64))[0, 0])
        images = torch.zeros(size, width, device=source.device)
    else:
        images = _pixels(size, data.channels, config.data.image_px, source.device)
    nobody = np.zeros(size, np.int64)
    labels = None
    if data.labels is not None:
        labels = source.views.labels(
            torch.zeros(size, dtype=torch.int64, device=source.device), data.num_classes
        )
    return Batch(images=images, index=nobody, view=nobody, labels=labels)


def _pixels(size: int, channels: int, px: int, device: torch.device) -> Tensor:
    """Images [size, C, px, px] uint8 whose strides are those of every input."""
    return torch.zeros(size, px, px, channels, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)

"""Checkpoints of a training run: one file, replaced as a whole or not at all.

It holds the trained weights, the optimiser, the step, and the labels counted so far. The learning rate follows from
the step; batches, noise and dropout of a step are drawn by generators that are seeded by the seed, the step and the
process. So the step is all that a resumed run has to know of them to go on as if it had not been stopped.

The weights of a sharded model (FSDP) are written by Accelerate, each process its part, to a folder beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from l4s_gym.agents.training import load_checkpoint, save_checkpoint
from l4s_gym.data.files import put_in_place
from l4s_gym.errors import L4SError

FOLDER: Final = "checkpoint-sharded"


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are trained, and the buffers of the modules, by name."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def sharded(accelerator: Any) -> bool:
    """Whether each process has only a part of the model."""
    return str(getattr(accelerator.distributed_type, "value", "")) == "FSDP"


def save(path: Path, accelerator: Any, model: Any, optimizer: Any, about: Mapping[str, Any]) -> None:
    """Write a checkpoint; all processes call it.

    Args:
        path: The file; its folder exists.
        accelerator: The `accelerate.Accelerator`.
        model: As it was prepared.
        optimizer: As it was prepared.
        about: Plain data: step, config, labels counted, ...

    Raises:
        L4SError: It cannot be written; the one before is as it was.
    """
    state = dict(about)
    if sharded(accelerator):
        new = path.with_name(f"{FOLDER}.new")
        accelerator.save_state(str(new))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            put_in_place(new, path.with_name(FOLDER))
    else:
        state |= {"model": trained(accelerator.unwrap_model(model)), "optimizer": optimizer.state_dict()}
    if accelerator.is_main_process:
        save_checkpoint(path, state)
    accelerator.wait_for_everyone()


def load(path: Path, accelerator: Any, model: Any, optimizer: Any, **same: Any) -> dict[str, Any]:
    """Go on from a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        accelerator: The `accelerate.Accelerator`.
        model: As it was prepared.
        optimizer: As it was prepared.
        same: Entries of `about` that have to be as they were.

    Returns:
        What was told `about` it.

    Raises:
        L4SError: There is none, it is damaged, or it is of another run.
    """
    state = load_checkpoint(path, **same)
    try:
        if sharded(accelerator):
            accelerator.load_state(str(path.with_name(FOLDER)))
        else:
            inner, weights = accelerator.unwrap_model(model), state.pop("model")
            if trained(inner).keys() != weights.keys():
                raise KeyError("it has other weights")
            inner.load_state_dict(weights, strict=False)
            optimizer.load_state_dict(state.pop("optimizer"))
    except (KeyError, RuntimeError, ValueError, OSError) as error:
        raise L4SError(f"{path}: does not fit the model ({error}): train without --resume") from error
    return state

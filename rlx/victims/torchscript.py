"""Models that torch.jit saved: their scores, and the gradients of these."""

import torch
from torch import Tensor

from rlx.agent import Spec
from rlx.errors import ConfigError, RunError
from rlx.victims.files import VictimFile
from rlx.victims.policy import Scorer, as_scores


def load(file: VictimFile, spec: Spec, device: torch.device) -> Scorer:
    """The model of a file; ConfigError where torch.jit saved none there."""
    try:
        model = torch.jit.load(str(file.path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"victim={file}: is no model of torch.jit.save ({reason}); rlx reads sb3:, "
            "torchscript: and onnx: files."
        ) from None

    def scores(obs: Tensor) -> Tensor:
        """The scores [B, A] of `obs` [B, *O]: the first output, where there are several."""
        try:
            output = model(obs.float())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"victim={file}: cannot take observations {list(obs.shape[1:])} ({reason})."
            ) from None
        first = output[0] if isinstance(output, tuple | list) else output
        return as_scores(first, len(obs), spec, str(file))

    return scores

"""Functions of a Python file: all that is known of such a policy is what it answers."""

import importlib.util
import sys
from typing import Any

import numpy as np
from torch import Tensor

from rlx.agent import Spec
from rlx.errors import ConfigError, RunError
from rlx.names import nearest, one_line
from rlx.victims.files import VictimFile
from rlx.victims.policy import Scorer, as_scores


def load(file: VictimFile, spec: Spec) -> Scorer:
    """The function of a file, which takes NumPy arrays [B, *O] of the env's own dtype.

    ConfigError where the file or the function cannot be had.
    """
    module_spec = importlib.util.spec_from_file_location(f"victim_{file.path.stem}", file.path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(file.path.parent))  # it may import what lies beside it
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(
            f"victim={file}: cannot be imported ({type(error).__name__}: {error})."
        ) from None
    finally:
        sys.path.remove(str(file.path.parent))
    function = getattr(module, file.function, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise ConfigError(f"victim={file}: no such function.{nearest(file.function, names)}")
    dtype: Any = spec.observation_space.dtype

    def scores(obs: Tensor) -> Tensor:
        """The scores [B, A] of `obs` [B, *O]; of a choice they are one-hot."""
        array = obs.detach().cpu().numpy()
        if np.issubdtype(dtype, np.integer):
            array = np.rint(array)
        try:
            output = function(array.astype(dtype))
        except Exception as error:  # whatever the user's function raises
            told = one_line(f"{type(error).__name__}: {error}")
            raise RunError(f"victim={file}: raised {told}.") from None
        return as_scores(output, len(obs), spec, str(file)).to(obs.device)

    return scores

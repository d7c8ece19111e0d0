"""Environments, one file each.

Importing this package registers the torch-native ones with Gymnasium, as `rlx/<Name>-v<k>`.
"""

import importlib
import pkgutil

_LATE = ("car_racing", "dmc")
"""Imported only when asked for, as in `rlx.envs.car_racing:rlx/CarRacing-v3`.

With Box2D and pygame, that one alone doubles the time in which any command starts.
"""

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _LATE:
        importlib.import_module(f"{__name__}.{_module.name}")

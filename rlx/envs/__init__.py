"""Environments, one file each. Importing this package registers the torch-native ones with Gymnasium, as `rlx/<Name>-v<k>`."""

import importlib
import pkgutil

_LATE = ("car_racing", "dmc")
"""Imported when asked for, `rlx.envs.car_racing:rlx/CarRacing-v3`: with Box2D and pygame that one doubles the time that all start in."""

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _LATE:
        importlib.import_module(f"{__name__}.{_module.name}")

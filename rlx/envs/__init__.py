"""Environments, one file each. Importing this package registers the torch-native ones with Gymnasium, as `rlx/<Name>-v<k>`."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

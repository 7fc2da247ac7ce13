"""setuptools' PEP 517 backend, plus the torch of the environment that pip installs into.

An isolated build hides that environment. Its site-packages is appended to sys.path, after the isolated setuptools, so
that `pip install -e .` compiles against the installed torch and never downloads another one.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - every hook that is not overridden below


def _candidates() -> list[str]:
    seen = [os.environ.get("HHMPN_TORCH_SITE"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if os.environ.get("VIRTUAL_ENV"):
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        seen.append(os.path.join(os.environ["VIRTUAL_ENV"], "lib", version, "site-packages"))
    return [path for path in dict.fromkeys(seen) if path and os.path.isdir(path)]


def _expose_torch() -> None:
    if importlib.util.find_spec("torch"):
        return
    for path in _candidates():
        site.addsitedir(path)
        importlib.invalidate_caches()
        if importlib.util.find_spec("torch"):
            return


def build_editable(*args: object, **kwargs: object) -> str:
    """PEP 660 hook."""
    _expose_torch()
    return build_meta.build_editable(*args, **kwargs)


def build_wheel(*args: object, **kwargs: object) -> str:
    """PEP 517 hook."""
    _expose_torch()
    return build_meta.build_wheel(*args, **kwargs)


def get_requires_for_build_editable(config_settings: object = None) -> list[str]:
    """PEP 660 hook."""
    _expose_torch()
    return build_meta.get_requires_for_build_editable(config_settings)


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    """PEP 517 hook."""
    _expose_torch()
    return build_meta.get_requires_for_build_wheel(config_settings)


def prepare_metadata_for_build_editable(*args: object, **kwargs: object) -> str:
    """PEP 660 hook."""
    _expose_torch()
    return build_meta.prepare_metadata_for_build_editable(*args, **kwargs)


def prepare_metadata_for_build_wheel(*args: object, **kwargs: object) -> str:
    """PEP 517 hook."""
    _expose_torch()
    return build_meta.prepare_metadata_for_build_wheel(*args, **kwargs)

"""Libraries that skavi can do without: imported when they are asked for, named when missing."""

import importlib
from types import ModuleType


def require(library: str, install: str) -> ModuleType:
    """Import a library, or say what to install.

    Parameters
    ----------
    library : str
        Name of the module.
    install : str
        What pip installs it by, for example ``"skavi[plot]"``.

    Raises
    ------
    ImportError
        Naming the command that remedies it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f'This needs {library}: pip install "{install}".') from error

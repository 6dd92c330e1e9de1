"""Optional libraries: imported when needed, with an error that says how to install them."""

import importlib
from types import ModuleType


def require(library: str, install: str) -> ModuleType:
    """Import a library, or say what to install.

    Parameters
    ----------
    library : str
        Name of the module.
    install : str
        The requirement to pass to pip, for example ``"skavi[plot]"``.

    Raises
    ------
    ImportError
        Naming the command that installs the library.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f'This needs {library}: pip install "{install}".') from error

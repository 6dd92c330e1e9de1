"""What is installed here, for reports of bugs."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from threadpoolctl import threadpool_info

from skavi._platform.version import __version__


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _libraries() -> list[str]:
    """Return the names of the libraries that skavi needs, then those that an extra names."""
    asked = [line.partition(";") for line in requires("skavi") or []]
    needed = {name for name, _, when in asked if "extra" not in when}
    optional = {name for name, _, when in asked if 'extra == "all"' in when.replace("'", '"')}
    first, then = ({_bare(each) for each in names} for names in (needed, optional))
    return [*sorted(first), *sorted(then - first)]


def _bare(requirement: str) -> str:
    """Return the name alone of a requirement such as pandas>=2.2."""
    return requirement.partition("[")[0].split(">")[0].split("<")[0].split("=")[0].strip(" !~")


def show_versions() -> None:
    """Print the versions of skavi, Python and the libraries it uses, threads, and GPUs.

    Examples
    --------
    >>> import skavi
    >>> skavi.show_versions()
    System:
        python: ...
    ...
    skavi: ...
    """
    print("System:")
    print(f"    python: {' '.join(sys.version.split())}")
    print(f"executable: {sys.executable}")
    print(f"   machine: {platform.platform()}")
    print("\nLibraries:")
    names = ["skavi", *_libraries()]
    width = max(map(len, names))
    for name in names:
        found = __version__ if name == "skavi" else _installed(name)
        print(f"{name:>{width}}: {found}")
    print("\nThreads:")
    print(f"   in torch: {torch.get_num_threads()}")
    for pool in threadpool_info():
        print(f"{pool['user_api']:>11}: {pool['num_threads']} ({pool['internal_api']})")
    print("\nDevices:")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"       cuda: {', '.join(gpus) or 'none'}")

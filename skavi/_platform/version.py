"""The version of this library, and the warning about files of another version."""

import sklearn
from sklearn.exceptions import InconsistentVersionWarning

__version__ = "0.1.0"


class SavedVersionWarning(InconsistentVersionWarning):
    """A file or a pickle was made by another version of skavi: its results may differ.

    Examples
    --------
    >>> import warnings
    >>> from skavi.persistence import SavedVersionWarning
    >>> with warnings.catch_warnings():  # files of a version that you trust
    ...     warnings.simplefilter("ignore", SavedVersionWarning)
    """

    def __init__(self, path, estimator_name, saved_version):
        super().__init__(
            estimator_name=estimator_name,
            current_sklearn_version=sklearn.__version__,
            original_sklearn_version=sklearn.__version__,
        )
        self.path, self.saved_version = path, saved_version

    def __str__(self):
        where = "" if self.path is None else f"{self.path}: "
        return (
            f"{where}{self.estimator_name} was saved by skavi {self.saved_version}, and this "
            f"is skavi {__version__}: its results may differ. Fit again, or install that version."
        )

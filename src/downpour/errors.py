"""Every error that Downpour raises on purpose.

```
DownpourError
├── SettingError      a value was given a setting that it cannot have      (also ValueError)
├── DataError         input data is missing, broken, empty or mistyped     (also ValueError)
├── PlanError         a model and its losses cannot be planned             (also ValueError)
├── TableError        a request that a table refuses; nothing was changed  (also ValueError)
├── NonFiniteError    NaN or infinity in a loss or gradient; not applied   (also ArithmeticError)
└── SavedRunError     a run folder that cannot be loaded                   (also ValueError)
```

A message says what was wrong, the value, the rule and the way out.
"""


class DownpourError(Exception):
    """The root of the tree."""


class SettingError(DownpourError, ValueError):
    """A value was given a setting that it cannot have."""


class DataError(DownpourError, ValueError):
    """Input data is missing, broken, empty or of the wrong type."""


class PlanError(DownpourError, ValueError):
    """A model and its losses cannot be planned."""


class TableError(DownpourError, ValueError):
    """A table refused a request; nothing was changed."""


class NonFiniteError(DownpourError, ArithmeticError):
    """NaN or infinity in a loss or a gradient; the step was not applied."""


class SavedRunError(DownpourError, ValueError):
    """A run folder cannot be loaded."""

"""Every error that Downpour raises on purpose.

```
DownpourError
├── SettingError      a value was given a setting that it cannot have      (also ValueError)
├── DataError         input data is missing, broken, empty or mistyped     (also ValueError)
├── PlanError         a model and its losses cannot be planned             (also ValueError)
├── TableError        a request that a table refuses; nothing was changed  (also ValueError)
│   └── OutOfMemoryError     there is no memory for it; nothing was changed (also MemoryError)
├── NonFiniteError    NaN or infinity, given or led to; not applied        (also ArithmeticError)
├── SavedRunError     a run folder that cannot be loaded                   (also ValueError)
├── RefusedError      a server does not take this peer or this message     (also ConnectionError)
│   └── RoundClosedError     an update came after its round had closed
├── ServerError       a server could not be asked                          (also ConnectionError)
│   ├── ServerTimeoutError   it gave no answer within the deadline         (also TimeoutError)
│   └── ServerLostError      it is gone, or came back without its tables
└── WorkerLostError   a worker died, hung or failed, and the run stops     (also ConnectionError)
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


class OutOfMemoryError(TableError, MemoryError):
    """There is no memory for what was asked; nothing was changed."""


class NonFiniteError(DownpourError, ArithmeticError):
    """NaN or infinity in a loss or gradient, or that a step would lead to; it was not applied."""


class SavedRunError(DownpourError, ValueError):
    """A run folder cannot be loaded."""


class RefusedError(DownpourError, ConnectionError):
    """A server does not take this peer or this message: token, version, plan, size, membership."""


class RoundClosedError(RefusedError):
    """A client's update came after its round of federated training had closed."""


class ServerError(DownpourError, ConnectionError):
    """A server could not be asked; the message names it and the request."""


class ServerTimeoutError(ServerError, TimeoutError):
    """A server gave no answer within the deadline."""


class ServerLostError(ServerError):
    """A server is gone, or came back without its tables."""


class WorkerLostError(DownpourError, ConnectionError):
    """A worker died, hung or failed, and the run stops."""

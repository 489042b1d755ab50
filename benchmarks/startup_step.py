"""Train two steps of a small model and print the seconds of each part, for `startup`."""

from __future__ import annotations

import json
import time


def main() -> None:
    marks = [time.perf_counter()]
    import torch  # noqa: F401  # timed by itself

    marks.append(time.perf_counter())
    from benchmarks.train_step_downpour import EmptyAdagrad
    from benchmarks.train_step_job import Job, make_batches

    marks.append(time.perf_counter())
    job = Job(batch_size=256, num_features=4, num_ids=10_000, num_batches=2)
    batches = make_batches(job)
    marks.append(time.perf_counter())
    engine = EmptyAdagrad(job, batches)
    marks.append(time.perf_counter())
    for index in range(job.num_batches):
        engine.step(index)
        marks.append(time.perf_counter())
    names = ("import torch", "import downpour", "batches", "plan and tables", "step 1", "step 2")
    parts = {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}
    del parts["batches"]
    print(json.dumps(parts))


if __name__ == "__main__":
    main()

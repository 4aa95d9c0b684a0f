"""Values that a Ray worker leaves for the driver while it works or before it ends: its progress, or a limit it passed.

Ray's internal key-value store would need no separate process, but it is not a public API. Losing a value together with
its node does no harm: progress is reported again, and a part that passed a limit passes it again.
"""

from typing import Any, Final

ANSWER_S: Final = 10.0
"""How long the mailbox may take to answer, in seconds."""


class Mailbox:
    """Holds the last value of each key, in an actor on the driver's node. Picklable: workers put, the driver reads."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        remote: Any = ray.remote(_Values)
        self._actor: Any = remote.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()

    def put(self, key: str, value: Any, wait: bool = False) -> None:
        """Leave a value. With `wait`, return once it is stored: for a process that ends afterwards."""
        import ray

        ref = self._actor.put.remote(key, value)
        if wait:
            ray.wait([ref], timeout=ANSWER_S)

    def get(self, key: str) -> Any:
        """Return the value of a key; None where there is none, or no answer."""
        return _answer(self._actor.get.remote(key))

    def take(self, key: str) -> Any:
        """Return the value of a key and remove it; None where there is none, or no answer."""
        return _answer(self._actor.take.remote(key))

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)


def _answer(ref: Any) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(ref, timeout=ANSWER_S)
    except (exceptions.RayActorError, exceptions.GetTimeoutError):
        return None


class _Values:
    """The actor."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def take(self, key: str) -> Any:
        return self._values.pop(key, None)

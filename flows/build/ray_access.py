"""Who can reach Ray: a local Ray listens on loopback alone, and asks for a token.

What listens where is listed in `docs/operations.md`. Ray executes whatever its clients send, so anybody who can reach
it without a token can run code as this user.
"""

import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from catalog.errors import BuildError, UserError

REACH_S: Final = 5.0
"""How long a cluster may take to accept a connection, in seconds."""
_MODE: Final = "RAY_AUTH_MODE"
_TOKEN: Final = "RAY_AUTH_TOKEN"  # noqa: S105  # the name of a variable
_NO_CLUSTER: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where it is 0, Ray takes 127.0.0.1 for the address of its node; its servers then bind to loopback."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have the Ray that is imported and started in the block bind to 127.0.0.1.

    Not Ray's `_node_ip_address="127.0.0.1"` alone, which it replaces by the machine's address.
    """
    before = os.environ.get(_NO_CLUSTER)
    os.environ[_NO_CLUSTER] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CLUSTER]
        else:
            os.environ[_NO_CLUSTER] = before


def require_token() -> None:
    """Have the Ray that is started next ask for a token. Raises UserError where the environment turns that off.

    Each process makes its own token, which is in no file: Ray's own is readable by every user of the machine.
    """
    mode = os.environ.get(_MODE)
    if mode is not None and mode.lower() != "token":
        raise UserError(
            f"{_MODE}={mode}: without a token, any user of this machine could run code through Ray: unset it"
        )
    if not any(os.environ.get(name) for name in (_TOKEN, "RAY_AUTH_TOKEN_PATH")):
        os.environ[_TOKEN] = secrets.token_hex(32)


def check_token_in_force() -> None:
    """Raise BuildError unless the Ray that was started asks for a token."""
    # Ray has no public way to ask this.
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    if not is_token_auth_enabled():
        import ray

        ray.shutdown()
        raise BuildError("Ray started without token authentication, so it was stopped: use --executor inline")


def private_folder() -> Path:
    """Return the folder for Ray's sockets and logs, which only this user can enter.

    In the temporary folder, as the paths of sockets must be short. Raises UserError where another user made it.
    """
    folder = Path(tempfile.gettempdir()) / f"espalier-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder


def check_reachable(address: str) -> None:
    """Raise UserError where nobody accepts a connection at `host:port` or `ray://host:port` within `REACH_S`.

    Ray itself would try for a minute, and then name no cause. Names without a port, such as `auto`, are left to Ray.
    """
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        host, port = url.hostname, url.port
    except ValueError:
        raise UserError(f"RAY_ADDRESS={address!r}: expected HOST:PORT") from None
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), REACH_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise UserError(f"cannot reach the Ray cluster RAY_ADDRESS={address!r}: {reason}") from None

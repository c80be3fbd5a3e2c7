"""The names and addresses under which a server is called."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::", "")
PATIENCE = 2.0
"""Seconds to wait for what the network calls this machine."""
_HOST = re.compile(r"(?:\[(?P<bracketed>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def own_names(host: str, allowed: Iterable[str] = ()) -> tuple[str, ...]:
    """The names, beside localhost and addresses in numbers, of a server that listens on `host`.

    Args:
        host: where it listens.
        allowed: more names, that the user gives.
    """
    names = {*allowed}
    if not is_loopback(host):
        names |= {host, *_machine_names()}
    return tuple(sorted(filter(None, (name.lower().rstrip(".") for name in names))))


def reached_at(host: str, port: int) -> list[str]:
    """Addresses for browsers of a server that listens on `host`; the first one is for this machine."""
    if host not in EVERYWHERE:
        return [_address(host, port)]
    own = [LOOPBACK if host != "::" else "::1", socket.gethostname(), *_network_addresses()]
    return [_address(name, port) for name in dict.fromkeys(own)]


def names_it(host: str, names: Iterable[str]) -> bool:
    """Whether a `Host` header names a server of these names: one of them, localhost, or an address in numbers."""
    found = _HOST.fullmatch(host.lower())
    if found is None or int(found["port"] or 0) > 65535:
        return False
    name = found["bracketed"] or found["name"]
    if not found["bracketed"] and name.rstrip(".") in {"localhost", *names}:
        return True
    try:
        return ipaddress.ip_address(name).version == (6 if found["bracketed"] else 4)
    except ValueError:
        return False


def _address(name: str, port: int) -> str:
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _machine_names() -> set[str]:
    """What this machine and its network call it: `box`, `box.local` and, if it is said in time, `box.example.org`."""
    short = socket.gethostname().partition(".")[0]
    found = {socket.gethostname(), short, f"{short}.local"}

    def ask_network() -> None:
        for known in (socket.gethostname(), *_network_addresses()):
            found.add(socket.getfqdn(known))

    asking = threading.Thread(target=ask_network, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return set(found)


def _network_addresses() -> list[str]:
    """The address from which this machine speaks to others; nothing is sent to find it."""
    found: list[str] = []
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # of documentation
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((other, 9))
                found.append(probe.getsockname()[0])
        except OSError:  # no network of this kind
            continue
    return found

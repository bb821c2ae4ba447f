"""Whether a peer gets through to all ports of its server, and what to say if not.

A firewall, a container or a tunnel may let only the first one through. Over it a peer
registers and beats; it would then wait for ever for a version.
"""

OPEN_WITHIN_S = 5.0  # a connection that takes longer is spoken of


def closed(
    role: str, hears: bool, is_heard: bool, model_port: int, update_port: int
) -> str:
    """The ports that have not come about, in words; "" = there is none.

    >>> closed("worker", False, False, 5571, 5572)
    'port 5571 (models) and port 5572 (updates)'
    >>> closed("evaluator", True, False, 5571, 5572)
    ''
    """
    found = [] if hears else [f"port {model_port} (models)"]
    if role == "worker" and not is_heard:
        found.append(f"port {update_port} (updates)")
    return " and ".join(found)

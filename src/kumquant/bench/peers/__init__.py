"""Other runtimes on this machine, for ``kumquant bench --compare``."""

from __future__ import annotations

import sys
from pathlib import Path

from ...errors import RequestError
from .kumquant_peer import Kumquant
from .llamacpp import IkLlamaCpp, LlamaCpp
from .peer import Opening, Peer, Speeds
from .process import Finished, PeerError, run_pinned
from .python_peers import LlamaCppPython, OnnxRuntime, OpenVino, PythonPeer

_PEERS: dict[str, type[LlamaCpp] | type[PythonPeer]] = {
    peer.name: peer for peer in (LlamaCpp, IkLlamaCpp, OpenVino, OnnxRuntime)
}
PEER_NAMES = tuple(_PEERS)


def find_peer(name: str, location: Path | None = None, python: str | None = None) -> Peer:
    """name: of PEER_NAMES. location: the folder of its programs (llama.cpp) or of a model of its own. python: the
    interpreter that has its package (default: this one). Raises RequestError for a name that is none.
    """
    if name not in _PEERS:
        raise RequestError("no runtime to compare with", where=name, expected=", ".join(PEER_NAMES))
    peer = _PEERS[name]
    if peer is LlamaCpp and location is None and LlamaCpp().how_to_install():
        peer = LlamaCppPython  # the package brings the library, not the programs
    return peer(location, python or sys.executable) if issubclass(peer, PythonPeer) else peer(location)


__all__ = ["PEER_NAMES", "Finished", "Kumquant", "Opening", "Peer", "PeerError", "Speeds", "find_peer", "run_pinned"]

"""An HTTP service over a tagger: ``pvp-fast serve ARTIFACT``, or an ASGI app for any server."""

from pvp_fast.serve.app import create_app
from pvp_fast.serve.config import ServeConfig

__all__ = ["ServeConfig", "create_app"]

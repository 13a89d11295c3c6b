"""Which Router stands behind the gateway? The one ROUTER_URL names, or a stand-in that `up` starts itself."""

from dataclasses import dataclass

from pydantic import HttpUrl

from sidecar.process import StartError

HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """Where Envoy sends the requests, in plain HTTP."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def router_address(url: HttpUrl) -> RouterAddress:
    """Take ROUTER_URL apart; raises StartError for whatever Envoy would not be told of."""
    # The URL itself is not repeated: it may hold a password.
    if url.scheme != "http":
        raise _refused(f"must begin with http://, not {url.scheme}://")
    if url.username or url.password:
        raise _refused("must not hold a user name or a password")
    if url.path not in (None, "", "/"):
        raise _refused(f"must not have a path, but has {url.path}: the client's path is passed on as it is")
    if url.query or url.fragment:
        raise _refused("must not have a query or a fragment")
    if not url.host:
        raise _refused("names no host")
    return RouterAddress(host=url.host.strip("[]"), port=url.port or HTTP_PORT)


def _refused(why: str) -> StartError:
    return StartError(f"ROUTER_URL {why}; it looks like http://host:port")

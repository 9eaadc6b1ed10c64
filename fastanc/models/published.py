"""Published weights: whether a server answers, asked before a library waits for one that does not."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

SECONDS = 2.0


def answers(url: str, seconds: float = SECONDS) -> bool:
    """Tell whether the server of a URL says anything, through the environment's proxy if there is one."""
    said = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer too
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # the library may know other certificates
                return
        except (OSError, ValueError):
            return
        said.set()

    # The search for a host's address cannot be given a limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return said.is_set()


def host_of(url: str) -> str:
    """Return the host that a URL names, for a sentence."""
    return urlsplit(url).netloc or url


def hub_url(repository: str) -> str:
    """Return where the Hugging Face hub has a repository."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


@contextmanager
def only_cached(*, enabled: bool) -> Iterator[None]:
    """Let the Hugging Face hub look into its cache only, in place of trying again for most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

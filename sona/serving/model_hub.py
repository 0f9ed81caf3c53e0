"""Whether a model's name can be asked for at the model hub, found out in one request: where it can't be reached,
transformers tries each file for half a minute.
"""

from __future__ import annotations

import logging
import os
import time

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from sona.errors import ModelNotFoundError

log = logging.getLogger("sona.serving")

_NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ProxyError"}
_AGAIN_S = 1.0


def reachable(place: str) -> str:
    """``place``, a folder or a hub id, or where the hub can't be reached: the folder of the model in the hub's cache on
    this machine.

    A connection is tried twice, for ``HF_HUB_ETAG_TIMEOUT`` seconds (10) each. A hub that is slow to answer, or answers
    with an error, counts as reached: transformers has more patience, and says what is wrong.

    Raises:
        ModelNotFoundError: the hub can't be reached, and the model is not in the cache.
    """
    if os.path.isdir(place):
        return place
    try:
        url = hf_hub_url(place, "config.json")
    except HFValidationError:  # transformers says what is allowed
        return place
    why = _why_unreachable(url)
    if why is None:
        return place
    if isinstance(found := try_to_load_from_cache(place, "config.json"), str):
        log.warning("the model hub can't be reached (%s): %s is loaded from its cache on this machine", why, place)
        return os.path.dirname(found)  # by its name, some files would be asked for all the same
    raise ModelNotFoundError(
        f"model {place!r}: there is no such folder on this machine, and the model hub at {constants.ENDPOINT} can't be "
        f"asked for it ({why}); give the path of a folder with config.json, tokenizer.json and safetensors files, a "
        "hub id where the hub can be reached, or 'tiny'"
    )


def _why_unreachable(url: str) -> str | None:
    """None where a server answered, or is only slow."""
    for is_last in (False, True):
        try:
            get_hf_file_metadata(url)
            return None
        except OfflineModeIsEnabled:
            return "HF_HUB_OFFLINE is set"
        except HfHubHTTPError:
            return None
        except Exception as error:  # of httpx or httpx2, by the version of huggingface_hub
            if not _NO_CONNECTION & {kind.__name__ for kind in type(error).__mro__}:
                return None
            if is_last:
                return str(error) or type(error).__name__
        time.sleep(_AGAIN_S)  # a name server or a router may have been waking up
    raise AssertionError("the last try returns")

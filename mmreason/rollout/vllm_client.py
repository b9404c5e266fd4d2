"""The HTTP side of a vLLM server: one call, its answer as JSON, and two kinds of failure kept apart.

`Unreachable` may pass by itself (a server that is starting, busy or dead); `Refused` will not.
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

VERSION = "0.26."  # of vLLM: what this was tested with
SERVE = "start it with `mmreason serve MODEL`"
_SHOWN = 400  # characters of what a server said


class Unreachable(Exception):
    """No answer: nothing listens, the time is over, or the server failed by itself (5xx)."""


class Refused(ValueError):
    """An answer that says no, or one that no vLLM server gives."""


class Client:
    """One server.

    Example: `Client("http://127.0.0.1:8000", 240.0).get("/version")` is `{"version": "0.26.0"}`.
    """

    def __init__(self, base_url: str, timeout: float) -> None:
        self.base_url, self.timeout = base_url.rstrip("/"), timeout
        self._opener = build_opener(ProxyHandler({}))  # a proxy of the environment is for other hosts

    def get(self, path: str) -> Any:
        """The answer to a GET, as JSON (None when it is empty)."""
        return self._call(Request(self.base_url + path))

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a POST of JSON, likewise.

        Raises:
            Unreachable, Refused: as the module says; both name the server, the call and what it said.
        """
        data = b"" if body is None else json.dumps(body).encode()
        return self._call(Request(self.base_url + path, data, {"Content-Type": "application/json"}))

    def rpc(self, method: str, **arguments: str) -> list[dict[str, Any]]:
        """What a method of the workers' extension gave, of each worker.

        Raises:
            Refused: the server was started without our extension, or is none of vLLM's.
        """
        try:
            answer = self.post("/collective_rpc", {"method": method, "kwargs": arguments})
        except Refused as error:
            raise Refused(
                f"{error}; rollouts need vLLM's development endpoints and mmreason's worker extension: {SERVE}"
            ) from error
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not results or not all(isinstance(r, dict) for r in results):
            raise Refused(
                f"{self.base_url}/collective_rpc: got {str(answer)[:_SHOWN]!r} of {method}; {SERVE}"
            )
        return results

    def _call(self, request: Request) -> Any:
        where = f"{request.get_method()} {request.full_url}"
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = response.read()
        except HTTPError as error:
            said = _said(error.read())
            if error.code >= 500:
                raise Unreachable(f"{where}: the server failed ({error.code}): {said}") from error
            raise Refused(f"{where}: the server refuses ({error.code}): {said}") from error
        except TimeoutError as error:
            raise Unreachable(f"{where}: no answer within {self.timeout:g} s") from error
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"{where}: {reason}") from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise Refused(
                f"{where}: got {text[:80]!r}, which is no JSON; is this a vLLM server? {SERVE}"
            ) from error


def _said(body: bytes) -> str:
    """The message of vLLM's error body, or its beginning."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
        return str(told["error"]["message"])[:_SHOWN]
    except (ValueError, KeyError, TypeError):
        return text[:_SHOWN]

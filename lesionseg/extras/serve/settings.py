"""Types and ranges of the settings of `serve`. Their defaults are in `conf/serve.yaml`."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from lesionseg.config import Bundles, InferenceConfig, PathKind, Settings


def _validate_host(name: str) -> str:
    """Return the name of a host that the server answers to, if its `*` is valid.

    Raises:
        ValueError: If a `*` is anything else than the complete name, or its first part (`*.name`).
    """
    # such as "a.*" or "*.*.org"; "*.example.org" and "*" are valid
    if "*" in name.removeprefix("*.") and name != "*":
        raise ValueError("not a host: a * may stand for the first part only: *.example.org")
    return name


def _strip_brackets(host: str) -> str:
    """Return a host without the brackets of an IPv6 address, which a socket does not accept."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


class ServeConfig(Settings):
    """The settings of `serve`."""

    private: ClassVar[bool] = True  # uploads are always private
    bundle: Annotated[Bundles, PathKind.BUNDLE]
    inference: InferenceConfig
    host: Annotated[str, AfterValidator(_strip_brackets)]
    port: Annotated[int, Field(ge=1, le=65535)]
    hosts: tuple[Annotated[str, AfterValidator(_validate_host)], ...]
    max_upload_mb: PositiveFloat
    max_waiting: PositiveInt
    request_seconds: PositiveFloat
    operating_point: str | None
    device: str
    trust: bool

"""What can go wrong before a kernel's text exists."""


class CodegenError(ValueError):
    """A spec or config that no template can render."""


class SpecError(CodegenError):
    """A field of a spec has a value that is not supported."""

    def __init__(self, field: str, given: object, supported: str) -> None:
        super().__init__(f"spec field {field!r}: got {given!r}; supported: {supported}")
        self.field = field
        self.given = given


class ConfigError(CodegenError):
    """A field of a config has a value that is not supported, alone or for this spec."""

    def __init__(self, field: str, given: object, supported: str) -> None:
        super().__init__(f"config field {field!r}: got {given!r}; supported: {supported}")
        self.field = field
        self.given = given

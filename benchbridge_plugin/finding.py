"""What the doctor found when it looked at one part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchbridge_plugin.errors import BridgeError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `level` is ok, warning or error. `roles`: the column of each role, where the line is about a file's columns."""

    level: str
    part: str
    message: str
    guidance: str = ""
    exit_code: int = 0
    roles: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """JSON values. Roles are an object of their own and stand in the message, too."""
        told = {"level": self.level, "part": self.part, "message": self.message, "guidance": self.guidance, "exit_code": self.exit_code}
        if not self.roles:
            return told
        columns = ", ".join(f"{role} ({column})" for role, column in self.roles.items())
        return {**told, "message": f"{self.message} {columns}", "roles": dict(self.roles)}


def bad(part: str, error: BridgeError) -> Finding:
    return Finding("error", part, error.message, error.guidance, error.exit_code)

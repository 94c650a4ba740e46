"""Settings of the vision service that are more than a number."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vision_service.settings import VisionSettings

NAMES = ("default_max_pixels", "default_max_video_pixels", "default_max_frames")


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_is_a_number_or_published(name: str) -> None:
    """Both forms are taken, as values and as the words of a flag or a variable; unset is the device's."""
    for given, expected in ((1, 1), ("4096", 4096), ("published", "published"), (None, None)):
        assert getattr(VisionSettings(bundle=".", **{name: given}), name) == expected
    assert getattr(VisionSettings(bundle="."), name) is None


@pytest.mark.parametrize("value", ["0", "-1", "nan", "1.5", "publish", "99999999999999", str((1 << 31) + 1)])
@pytest.mark.parametrize("name", NAMES)
def test_another_value_is_wrong_usage(name: str, value: str) -> None:
    """It is refused before anything is loaded: exit code 2 and one line that names the setting and what it may be."""
    flag = f"--{name.replace('_', '-')}={value}"
    command = [sys.executable, "-m", "vision_service", "--bundle", "nowhere", flag]
    if name != NAMES[0]:  # a process for each would take long, and all three are checked alike
        with pytest.raises(ValueError, match="must be a whole number from 1 to"):
            VisionSettings(bundle=".", **{name: value})
        return
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vision_service: {name}: ")
    assert line.endswith("must be a whole number from 1 to 2147483648, or published")

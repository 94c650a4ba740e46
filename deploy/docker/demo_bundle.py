"""What docker-compose.yml runs before the services: sees to it that there is a bundle in /bundle.

    python demo_bundle.py [TRIPTYCH_BUNDLE]

With a bundle of the user's own (the argument says which) it only checks that it is whole. Without one, /bundle is a
volume of ours, and the demo bundle is exported into it, unless this version did that before. There the volume holds

    .made/triptych/demo-int4-…   the bundle, named by the checkpoint and the exporter that it was made from
    .current                     a link to it; a new bundle takes over in one step, and who has files open keeps them
    bundle.json vision decoder   links through .current, so that /bundle is the bundle itself, like a user's own
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from serving.bundle import Bundle
from triptych.bundles import demo_bundle

BUNDLE = Path("/bundle")


def main(given: str) -> int:
    """Check or make the bundle. Returns the exit code."""
    try:
        if not given:
            make()
        print(f"serving {Bundle.open(BUNDLE).model.id} from {given or 'the demo bundle'}")  # noqa: T201
    except Exception as error:  # noqa: BLE001  # whatever it is, this line is what people see of a start that failed
        where = f" (TRIPTYCH_BUNDLE is {given})" if given else ""
        print(f"no bundle: {error}{where}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def make() -> None:
    """Have the demo bundle in the volume."""
    os.environ["XDG_CACHE_HOME"] = str(BUNDLE / ".made")
    made = demo_bundle().relative_to(BUNDLE)
    link(BUNDLE / ".current", made)
    for path in (BUNDLE / made).iterdir():
        link(BUNDLE / path.name, Path(".current", path.name))
    for old in (BUNDLE / made).parent.iterdir():
        if old.name != made.name:
            shutil.rmtree(old)


def link(at: Path, to: Path) -> None:
    """Make `at` a link to `to`, in one step also where it is another link."""
    new = at.with_name(f"{at.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(to)
    new.replace(at)


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))

"""The error of reading a bundle, for code that needs nothing else from `serving.bundle`."""

from serving.problem import Problem, ProblemError


class BundleProblem(Problem):
    """Why a directory is not a usable bundle."""

    MISSING = (
        "There is no bundle at {root}: make one with `triptych export CHECKPOINT {root}`.",
        "A typing error, or the mount is missing in the container.",
    )
    OF_ANOTHER_PROGRAM = (
        "{path} does not describe a Triptych bundle (its format is {format!r}).",
        "It is a `bundle.json` of another program.",
    )
    FORMAT_VERSION = (
        (
            "{path} has bundle format {version} and this version of Triptych reads {readable}: export the bundle "
            "again with the Triptych that is to serve it."
        ),
        "The bundle and the service have different versions.",
    )
    PATH_OUTSIDE = (
        "{path} names a file outside the bundle ({name}): do not use it.",
        "The bundle was manipulated: do not use it.",
    )
    NO_GRAPH = (
        "The bundle {root} has no {precision} graph (it has {held}): export it with that precision.",
        "Export with that precision.",
    )
    NO_MANIFEST = (
        (
            "{root} is not a bundle, or only a part of one, since it has no {manifest}: make one with `triptych "
            "export CHECKPOINT {root}`."
        ),
        "The copy is incomplete, or it is the checkpoint.",
    )
    UNREADABLE = (
        "{path} cannot be read ({error}).",
        "Permissions: the service's user may not read it.",
    )
    FILE_DAMAGED = (
        "{path} cannot be read ({error}): export the bundle again.",
        "The file is damaged or was edited.",
    )
    MANIFEST_INVALID = (
        "{path} is not valid ({error}): export the bundle again.",
        "`bundle.json` was edited.",
    )
    FILE_MISSING = (
        "The bundle {root} is incomplete, {name} is missing: export it again.",
        "The copy is incomplete.",
    )
    FILE_SIZE = (
        "The bundle {root} is damaged, {name} has {size:,} bytes instead of {expected:,}: copy or export it again.",
        "The copy is incomplete.",
    )
    GRAPH_NOT_LISTED = (
        "The bundle {root} is incomplete, its {precision} graph {graph} is not among its files: export it again.",
        "`bundle.json` was edited.",
    )
    DIGEST = (
        "The bundle {root} is damaged, {name} does not match its digest: copy or export it again.",
        "A byte of the file has changed: the copy was faulty, or the disk is. `--no-verify` skips this check.",
    )
    ENCODER_UNREADABLE = (
        "The encoder in {folder} cannot be read ({error}): export the bundle again.",
        "The file is damaged or was edited.",
    )
    ENCODER_WEIGHTS = (
        "The weights in {folder} are not those of its config.json ({error}): export the bundle again.",
        "The files belong to two models.",
    )
    ENCODER_UNSUPPORTED = (
        "The encoder in {folder} cannot be served: {error}.",
        "Its config has an activation that Triptych does not support.",
    )
    SIZE_UNSUPPORTED = (
        "{path} has size = {size}, where only two bounds of the pixels can be served.",
        "`size` has only one edge, or height and width.",
    )
    SETTING_UNSUPPORTED = (
        "{path} has {name} = {found}, where only {supported} can be served.",
        "Triptych does not support these preprocessor settings.",
    )
    SETTING_INVALID = (
        "{path} cannot be served ({kind}: {error}).",
        "A value in the preprocessor settings has the wrong type.",
    )
    FAMILY_UNKNOWN = (
        (
            "The bundle {root} holds a model of the family {family}, for which the vision service encodes "
            "nothing (it encodes for {known}): serve another bundle."
        ),
        "The service is older than the exporter, or the family has no media.",
    )
    NO_ENCODER = (
        "The model {model} in the bundle {root} takes text only and has no encoder: start no vision service for it.",
        "Start the gateway with `--vision off`; `triptych up` does so by itself, and docker-compose.text.yml does.",
    )
    FEATURE_WIDTH = (
        "The encoder of {root} gives features {width} wide, and bundle.json says {expected}: export the bundle again.",
        "The files belong to two models.",
    )
    NO_MEMORY = (
        (
            "The weights in {folder} take {needed:.1f} GiB, and this process may use {usable:.1f} GiB of memory: give "
            "it more."
        ),
        "The limit is that of the machine, of the container, or of `ulimit -v`.",
    )
    NO_DEMO = (
        "The demo bundle cannot be made: {error}",
        "The rest of the message gives the reason, for example a full disk.",
    )


class BundleError(ProblemError):
    """The directory is not a usable bundle. Its problem is a `BundleProblem`."""

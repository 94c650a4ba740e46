"""The exception that the exporter raises on purpose, and the texts of others in its sentences."""

from serving.problem import Problem, ProblemError


class ExportProblem(Problem):
    """Why an export cannot be done."""

    NO_TOKENIZER = (
        "The checkpoint {root} has no tokenizer.json: download it again with its tokenizer.",
        "Copy it from the model that yours was made from.",
    )
    NO_TEMPLATE = (
        (
            "The checkpoint {root} has no chat template (chat_template.jinja, chat_template.json, or inside "
            "tokenizer_config.json): take an instruct model, or add the template of the model it was made from."
        ),
        "Base models have none. See also [troubleshooting](troubleshooting.md#gibberish).",
    )
    TOKENIZER_UNREADABLE = (
        "{path} is not a readable tokenizer ({error}): download it again.",
        "The file is damaged, or was written by a newer version of tokenizers.",
    )
    WIDTHS_DIFFER = (
        (
            "{config} is inconsistent: the encoder gives features of width {features} and the language model's "
            "is {hidden}."
        ),
        "Encoder and language model differ in size: two checkpoints were mixed.",
    )
    ROPE_UNSUPPORTED = (
        (
            "{config} asks for {kind!r} rotary embeddings, and only {known} are supported: without them the context is "
            "{length} tokens."
        ),
        "Set `rope_type` in the config to `default`, or to `yarn` as the model's page has it for long contexts.",
    )
    MROPE_SECTION = (
        "{config} is inconsistent: mrope_section {section} does not divide half of head_dim {head_dim} in three.",
        "Compare `mrope_section` and `head_dim` with the original config.",
    )
    NO_PREPROCESSOR = (
        "The checkpoint {root} has no preprocessor_config.json: download it again.",
        "Copy it from the model that yours was made from.",
    )
    NO_END_TOKEN = (
        (
            "The checkpoint {root} does not say which token ends an answer: add eos_token_id to its "
            "generation_config.json."
        ),
        "Copy `generation_config.json` from the model that yours was made from.",
    )
    CONFIG_INVALID = (
        "{config} is not a valid {model} config ({error}).",
        "Compare it with the config of the model that yours was made from.",
    )
    SLIDING_WINDOW = (
        "{config} turns on sliding windows in the language model ({field}), which are not supported.",
        "Published models have it off: take the config of the model that yours was made from.",
    )
    ACTIVATION_UNSUPPORTED = (
        "{config} asks for the activation {found!r} ({field}), and only {known} are supported.",
        "Compare `hidden_act` with the config of the model that yours was made from.",
    )
    WINDOW_SIZE = (
        "{config} is inconsistent: the encoder's window_size {window} is less than a token's {token} pixels.",
        "Compare `window_size` with the original config.",
    )
    TOKEN_OUTSIDE = (
        "{config} is inconsistent: {token} lies outside the vocabulary.",
        "The vocabulary was cut, or the config is of another model.",
    )
    GRAPH_UNSUPPORTED = (
        "The decoder graph of {root} cannot be built: {error}",
        "The graph builder does not support something in the config; the rest of the message names it.",
    )
    PREPROCESSOR_UNSUPPORTED = (
        (
            "The preprocessor settings cannot be served: {error}; take those of the model that the checkpoint "
            "was made from."
        ),
        "The rest of the message names the setting and the supported value.",
    )
    TEMPLATE_FAILS = (
        (
            "The chat template of {root} does not render a conversation ({error}): take that of "
            "the model that the checkpoint was made from."
        ),
        "The message gives the reason. A model with an encoder needs a template that renders images.",
    )
    FAMILY_UNSUPPORTED = (
        "{root} holds {found}: only {accepted} can be exported.",
        "Mixture-of-experts models, Qwen2-VL and other families are not supported: see [models](models.md).",
    )
    GGUF = (
        (
            "{root} holds GGUF files, llama.cpp's format: export the checkpoint that they were made from, the "
            "repository without GGUF in its name."
        ),
        "The repository without GGUF in its name has the checkpoint.",
    )
    ADAPTER = (
        (
            "{root} holds only an adapter (LoRA){of_model}: merge it into its model with PEFT's "
            "merge_and_unload, save that with tokenizer and processor, and export it."
        ),
        "An adapter contains changes to a model, not the model.",
    )
    QUANTIZED = (
        (
            "{root} is quantized with {method}, and of quantized checkpoints only FP8 is read: export the one "
            "that it was made from, the exporter quantizes it."
        ),
        "Take the repository without AWQ, GPTQ, MLX or the like in its name.",
    )
    JSON_NO_OBJECT = (
        "{path} does not hold a JSON object: download it again.",
        "The file is damaged.",
    )
    FILE_MISSING = (
        "The checkpoint {root} has no {name}: download it again.",
        "A file of the checkpoint was not copied.",
    )
    FILE_UNREADABLE = (
        "{path} cannot be read ({error}): download it again.",
        "The file is damaged or is not JSON.",
    )
    NO_PRECISION = (
        "There is no precision {precision!r}: use int4 or fp32.",
        "Python only; the command line offers no other.",
    )
    NO_RECIPE = (
        "There is no recipe {recipe!r}: use one of {known}.",
        "Python only; the command line offers no other.",
    )
    NO_BLOCK_SIZE = (
        "There is no block size {block_size}: use one of {known}.",
        "32 is the default. Smaller blocks are more accurate and larger.",
    )
    NO_ACCURACY_LEVEL = (
        "There is no accuracy level {level}: use 0 to 4.",
        "4 is the default. 1 is slower and computes in float32.",
    )
    FP32_CALIBRATED = (
        "An fp32 bundle has nothing to calibrate: leave it out, or export at int4.",
        "Calibration is for quantization, and fp32 is not quantized.",
    )
    NO_CALIBRATION_DIRECTORY = (
        (
            "There is no directory {folder} to calibrate on: name one that holds pictures or a {prompts}, or leave it "
            "out for the data of the package."
        ),
        "A typing error in `--calibrate DIR`.",
    )
    NO_CALIBRATION_DATA = (
        "{folder} holds nothing to calibrate on: put pictures ({suffixes}) or a {prompts} into it.",
        "It is the wrong directory, or its pictures are of other types.",
    )
    NO_CALIBRATION_TEXT = (
        (
            "The calibration data {name} has only prompts with pictures, and the model takes text only: add others to "
            "its {prompts}."
        ),
        "A model without an encoder is calibrated on prompts without `image`.",
    )
    CALIBRATION_LINE = (
        (
            'Line {number} of {path} is not a prompt: write it as {{"prompt": "What is this?", "image": "photo.jpg", '
            '"answer": "A cat."}}, where only "prompt" must be.'
        ),
        "An entry is missing, misspelt or not a string, or the line is not JSON.",
    )
    CALIBRATION_UNREADABLE = (
        "{path} cannot be read ({error}): write it in UTF-8.",
        "`prompts.jsonl` is in another encoding, or may not be read.",
    )
    CALIBRATION_PICTURE_MISSING = (
        "The picture {path} cannot be read ({error}): add it, or take it out of {prompts}.",
        "`prompts.jsonl` names a file that is not in the directory.",
    )
    CALIBRATION_PICTURE_DAMAGED = (
        "The picture {path} {error}: replace it, or take it out.",
        "A picture of the calibration data is damaged or too large.",
    )
    CALIBRATION_LAYOUT = (
        (
            "The calibration data cannot be laid out ({error}): correct the checkpoint's chat template, or export with "
            "--no-calibrate."
        ),
        "The chat template does not take a user's message with a picture and an answer to it.",
    )
    NO_PHASES = (
        "There are no phases {phases!r}: use int4 or int4,int8.",
        "Python only; the command line has its own message. INT4 cannot be left out.",
    )
    PHASES_OF_FP32 = (
        "An fp32 bundle has no phases: leave them out, or export at int4.",
        "They are the two graphs of an INT4 bundle.",
    )
    SOURCE_IS_FILE = (
        "{path} is a file: name the checkpoint's directory, the one that holds its config.json.",
        "Name the directory, not the weights in it.",
    )
    NO_DIRECTORY = (
        (
            "There is no directory {path}: name a checkpoint's directory or a Hugging Face id such as "
            "Qwen/Qwen3-VL-4B-Instruct."
        ),
        "A typing error, or an id without its owner.",
    )
    NO_CONFIG_ON_HUB = (
        "{repo} on Hugging Face has no config.json: it is no checkpoint of transformers.",
        "The repository is of another library.",
    )
    NO_ROOM_FOR_WEIGHTS = (
        (
            "The weights of {repo} take {weights}{bundle} and {cache} has {free} free: make room, or set HF_HOME "
            "to a directory on another disk."
        ),
        "Checked before the download. The bundle is included if it is on the same disk.",
    )
    GATED = (
        (
            "Hugging Face gives {repo} only to accounts that accepted its terms: accept them on its page, then "
            "run `hf auth login`."
        ),
        "Once for each account.",
    )
    NO_REVISION = (
        "{repo} has no revision {revision!r} on Hugging Face.",
        "Look at the branches and tags on the model's page.",
    )
    NO_REPOSITORY = (
        (
            "There is no directory {repo} here and no model {repo} on Hugging Face, unless a private one: then "
            "run `hf auth login`."
        ),
        "A typing error, or a model that needs an account.",
    )
    HUB_OUT_OF_REACH = (
        (
            "There is no directory {repo} here and Hugging Face could not be reached to download {which}: "
            "connect and run the command again (a download goes on where it stopped), or name a local checkpoint "
            "directory."
        ),
        "Copy the checkpoint from a machine that can reach it and name its directory.",
    )
    NOT_CACHED = (
        (
            "{which} could not be stored in Hugging Face's cache ({error}): make room, or set HF_HOME to a "
            "directory on another disk, and run the command again."
        ),
        "The download needs space for the whole checkpoint.",
    )
    NOT_FINITE = (
        (
            "{tensor} in {file} holds numbers that are NaN or infinite: the training went wrong or the file is "
            "damaged; take an earlier checkpoint or download it again."
        ),
        "The loss became NaN, or the file is damaged.",
    )
    FILE_ENDED = (
        "{file} ended early while it was read: export when it is no longer being written.",
        "Wait until the training run or the copy has finished.",
    )
    FILE_TRUNCATED = (
        "{file} is truncated, it has {size:,} of {end:,} bytes: download it again.",
        "The download is incomplete.",
    )
    SCALES_UNSUPPORTED = (
        (
            "{tensor} in {file} is {dtype} {shape} and blocks of {block} call for {grid}: only FP8 with one "
            "scale for each block or tensor can be read."
        ),
        "Take the unquantized checkpoint.",
    )
    ADAPTER_UNMERGED = (
        (
            "{root} holds an adapter's weights that are not merged ({tensor}): merge them with PEFT's "
            "merge_and_unload, save the model and export that."
        ),
        "Merge the adapter (LoRA) first.",
    )
    ADAPTER_UNSUPPORTED = (
        "The adapter of {path} is not supported: {error}.",
        "Take the vision adapter of the published model, or a LoRA that PEFT trained with its usual options.",
    )
    ADAPTER_FILE_MISSING = (
        (
            "The adapter's folder {folder} has no {name}: download that file again, or remove the folder to export the "
            "model without an adapter."
        ),
        "A file was not copied.",
    )
    ADAPTER_INCOMPLETE = (
        "The adapter in {weights} lacks {tensor}, which {config} calls for: download it again.",
        (
            "The file is of another adapter or incomplete. If the adapter was merged into the published weights, take "
            "`vision_lora` out of `config.json`."
        ),
    )
    ADAPTER_RANK = (
        (
            "{config} gives the adapter of {matrix} rank {said}, and {tensor} in {file} has rank {rank}: take both "
            "from one training run."
        ),
        "Config and weights are of two adapters. The rank determines what the adapter is multiplied by.",
    )
    TENSOR_MISSING = (
        (
            "The checkpoint {root} lacks {tensor}{more}, which its config.json calls for (it has {stored}): "
            "download it again, or convert it to {model}'s published tensor names."
        ),
        "The weights have other names, for example those of mlx-vlm, or the config has more layers.",
    )
    NO_WEIGHTS = (
        "{root} has no weights ({single} or {index}): only safetensors checkpoints can be exported.",
        "`.bin` checkpoints: save them again with transformers, which writes safetensors.",
    )
    INDEX_UNREADABLE = (
        "{path} cannot be read ({error}): download the checkpoint again.",
        "`model.safetensors.index.json` is damaged.",
    )
    SHARD_MISSING = (
        "The checkpoint {root} is incomplete, its index lists {name} and there is no such file: download it again.",
        "A shard was not copied.",
    )
    SHARD_UNREADABLE = (
        "{file} is not a readable safetensors file ({error}): download it again.",
        "The download is incomplete, or it is a Git LFS pointer.",
    )
    SEVERAL_MODELS = (
        "{root} holds several models, with the prefixes {prefixes}: save one of them alone.",
        "A trainer saved a teacher or an averaged model, too.",
    )
    SHAPES_DIFFER = (
        (
            "{tensor} in {file} has shape {shape} and config.json calls for {expected}: the config and the "
            "weights are not of the same model."
        ),
        "Two checkpoints were mixed, or the vocabulary resized.",
    )
    DTYPE_UNSUPPORTED = (
        "{tensor} in {file} is stored as {dtype}: export the unquantized checkpoint ({known}) instead.",
        "Integers, or FP8 without scales.",
    )
    NOT_WRITTEN = (
        "{out} could not be written, and nothing was kept: {reason}{where}.",
        "Permissions, or a failing disk: see the rest of the message.",
    )
    TARGET_IS_FILE = (
        "{out} is a file or a link: name a directory to be made.",
        "The bundle is a directory.",
    )
    TARGET_IS_FULL = (
        "{out} has other files in it and is not a bundle: name a new or empty directory.",
        "Only bundles are replaced.",
    )
    TARGET_IS_BUNDLE = (
        "{out} holds a bundle already: name another directory, or use --force to replace it.",
        "The old one stays until the new one is complete.",
    )
    NO_ROOM = (
        "The bundle needs about {needed} and {folder} has {free} free: make room, or name a directory on another disk.",
        "Checked before any long work.",
    )
    DISK_FULL = (
        "The disk became full while {out} was written, and nothing was kept: make room first.",
        "Something else wrote to the same disk.",
    )


class ExportError(ProblemError):
    """The export cannot be done. Its problem is an `ExportProblem`."""


def one_line(error: Exception) -> str:
    """The text of an exception, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]

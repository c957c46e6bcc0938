"""Every refusal has a next step, and what it names is there: keys of recipes, commands, options, names, pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from source_files import ADAPTERS, CORE, ROOT
from user_errors import HOLE, Refusal, of_source, refusals

from xmodal_kd.cli.catalogue import adapters
from xmodal_kd.cli.main import app
from xmodal_kd.compress.known import COMPRESSIONS
from xmodal_kd.losses import LOSSES
from xmodal_kd.objective.objective import spec_of
from xmodal_kd.recipe.recipe import CompressSpec, MethodSpec, Recipe, SchemeSpec, Term
from xmodal_kd.runtime.errors import UserError, page_of, with_page
from xmodal_kd.schemes import SCHEMES
from xmodal_kd.training.method import METHODS

#: Options of other programs, and of the modules that ask for them.
THEIR_OPTIONS = {"--local-dir", "--force-reinstall", "--ignore-length", "--upgrade"}
#: Keys of other programs' files and their functions, and of ours in files that are no recipes.
THEIRS = {
    "alphas_cumprod", "auto_map", "beta_schedule", "class_embed_type", "file_name", "final_sigmas_type", "find_rings",
    "flow_shift", "guidance_embeds", "patch_size", "use_dynamic_shifting",
    "frame_seconds", "layers_per_block", "scaling_factor", "shift_terminal",
    "sigma_data", "sigma_max", "sigma_min", "sigma_schedule",
    "learning_map_inv", "num_inference_steps", "pad_token_id", "prediction_type", "safe_serialization", "sample_size",
    "save_pretrained", "target_lang", "time_embedding_type", "timestep_spacing", "to_json", "use_reentrant",
    "decoder_start_token_id", "max_target_positions", "vocab_size", "pretrained_cfg", "state_dict",
    "flatten_indices", "save_audios", "save_to_disk", "trim_to_supervisions", "weight_map",
    "client_id", "fuse_lora", "load_lora_weights", "num_train_timesteps", "trained_betas",
    "crop_size", "image_mean", "image_std",
}  # fmt: skip
#: Words that follow "use", "take", "choose" and are no names.
PLAIN = {"a", "an", "another", "by", "distil", "fewer", "it", "modules", "one", "sigmas", "that", "the"}
#: Sections of the recipe by which texts begin a key; `features` stands for that of ``data``.
SECTIONS = {*Recipe.model_fields, "features", "augment"} - {"out", "seed", "threads"}

KEY = re.compile(rf"(?<![\w./{HOLE}-])([a-z_]+)((?:\.[a-z_]+)+)(?![\w{HOLE}(.]|\.\w)")
OPTION = re.compile(r"(?:\b([a-z]+) )?(?<![\w-])(--[a-z][a-z-]*)")
COMMAND = re.compile(r"xmodal-kd ([a-z][a-z-]*)")
SNAKE = re.compile(rf"(?<![\w./{HOLE}-])[a-z]+[a-z0-9]*(?:_[a-z0-9]+)+(?![\w/(.{HOLE}])")
ADVISED = re.compile(
    r"\b(?:use|take|choose|distil|compare by|put) (?:the )?"
    r"(?:term |loss |method |scheme |balance |importance |points: )?([a-z]\w*)(?: or ([a-z]\w*))?"
)
#: Commands whose own options a text means that names them before an option.
COMMANDS = {
    "run",
    "check",
    "report",
    "compare",
    "new",
    "distil",
    "segment",
    "sample",
    "transcribe",
    "pseudolabel",
    "export",
    "cache",
}
FILES = (".json", ".jsonl", ".scp", ".tsv", ".yaml", ".safetensors")


# ---------------------------------------------------------------- what there is


def inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from inner(part)


every = cache(lambda: tuple(refusals()))


@cache
def rooms() -> tuple[Any, ...]:
    return tuple(kind for _, kind in adapters())


def below(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """Models whose keys may stand under a key of `model`."""
    if model is Recipe and key == "data":
        return [room.Data for room in rooms()]
    if key == "params":
        kinds: dict[type[BaseModel], Any] = {MethodSpec: METHODS, SchemeSpec: SCHEMES, CompressSpec: COMPRESSIONS}
        if model is Term:
            return [spec_of(Term(loss=name)).params for name in LOSSES]
        if model in kinds:
            return [kinds[model][name].Params for name in kinds[model]]
        return [room.models[name].Config for room in rooms() for name in room.models]
    return list(inner(model.model_fields[key].annotation))


def is_key(parts: Iterable[str]) -> bool:
    """Whether a dotted path leads to a key of some recipe."""
    models: list[type[BaseModel]] = [Recipe]
    for part in parts:
        having = [model for model in models if part in model.model_fields]
        if not having:
            return False
        models = [found for model in having for found in below(model, part)]
    return True


@cache
def names() -> tuple[frozenset[str], frozenset[str]]:
    """Every name that a recipe may hold: of keys; of registered things and choices."""
    keys, brought = set[str](), rooms()  # which registers what is its own
    found = {*LOSSES, *METHODS, *SCHEMES, *COMPRESSIONS}
    models: list[type[BaseModel]] = [
        Recipe,
        *(METHODS[n].Params for n in METHODS),
        *(SCHEMES[n].Params for n in SCHEMES),
    ]
    models += [COMPRESSIONS[name].Params for name in COMPRESSIONS]
    for room in brought:
        found |= {*room.models, *room.datasets}
        models += [room.Data, *(room.models[name].Config for name in room.models)]
    seen: set[type[BaseModel]] = set()
    while models:
        if (model := models.pop()) in seen:
            continue
        seen.add(model)
        for key, field in model.model_fields.items():
            keys.add(key)
            found |= set(choices(field.annotation))
            models += inner(field.annotation)
    return frozenset(keys), frozenset(found)


def choices(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if isinstance(part, str):
            yield part
        else:
            yield from choices(part)


@cache
def options() -> dict[str, set[str]]:
    """The program's options by command."""
    group: Any = typer.main.get_command(app)
    own = {"": {opt for parameter in group.params for opt in parameter.opts}}
    return own | {
        name: {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in group.commands.items()
    }


def wrong(refusal: Refusal) -> Iterator[str]:
    """What a text names that is not there."""
    text = refusal.text
    for match in KEY.finditer(text):
        first, rest = match[1], match[2].split(".")[1:]
        if first in SECTIONS and not match[0].endswith(FILES):
            parts = [first, *rest] if first in Recipe.model_fields else ["data", first, *rest]
            if not is_key(parts):
                yield f"the key {match[0]}"
    for command, option in OPTION.findall(text):
        known = options()[command] if command in COMMANDS else set().union(*options().values()) | THEIR_OPTIONS
        if option not in known:
            yield f"the option {command} {option}"
    yield from (f"the command {command}" for command in COMMAND.findall(text) if command not in options())
    keys, things = names()
    yield from (f"the name {name}" for name in SNAKE.findall(text) if name not in keys | things | THEIRS)
    for pair in ADVISED.findall(text):
        yield from (f"the name {name}" for name in pair if name and name not in things | PLAIN)
    yield from (f"the page {page}" for page in re.findall(r"[\w/]+\.md(?:#[\w-]+)?", text) if not is_page(page))


# ---------------------------------------------------------------- pages


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads)


def is_page(name: str) -> bool:
    place, _, anchor = name.partition("#")
    return (ROOT / place).is_file() and (not anchor or anchor in anchors(ROOT / place))


def page_in(package: Path) -> str | None:
    """What a package says in ``PAGE``."""
    tree = ast.parse((package / "__init__.py").read_text())
    named = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "PAGE"]
    return ast.literal_eval(named[0].value) if named else None


PACKAGES = sorted(path.parent for root in (CORE, ADAPTERS) for path in root.rglob("__init__.py"))


def test_every_page_is_there() -> None:
    pages = [page for package in PACKAGES if (page := page_in(package)) is not None]
    assert len(pages) > 20 and not [page for page in pages if "#" not in page or not is_page(page)]
    held = {p: text for p in (*CORE.rglob("*.py"), *ADAPTERS.rglob("*.py")) if "HELP =" in (text := p.read_text())}
    assert held and all(is_page(page) for text in held.values() for page in re.findall(r'HELP = "(.+)"', text))


def test_every_refusal_comes_with_a_page() -> None:
    """Of its package or one around it; of those that serve all its caller's: the last of these is ``cli``."""
    lacking = []
    for refusal in every():
        around = [p for p in refusal.path.parents if (p / "__init__.py").is_file()]
        if not any(map(page_in, around)) and not {CORE / "runtime", CORE / "adapter"} & set(around):
            lacking.append(str(refusal))
    assert not lacking and page_in(CORE / "cli") is not None


def test_a_refusal_shows_its_page() -> None:
    from xmodal_kd.recipe.recipe import load

    with pytest.raises(UserError) as refused:
        load("no/such/recipe")
    assert page_of(refused.value) == "recipes/README.md#keys"
    assert with_page(refused.value).endswith("(see recipes/README.md#keys)")
    assert with_page(UserError("see docs/own_data.md")) == "see docs/own_data.md"


# ---------------------------------------------------------------- names


def test_what_refusals_name_is_there() -> None:
    assert len(every()) > 500
    assert [f"{refusal}: {name}" for refusal in every() for name in wrong(refusal)] == []


@pytest.mark.parametrize(("text", "name"), [
    ("data.path: nothing there: set data.pth", "the key data.pth"),
    ("the teacher differs: set method.params.featuers", "the key method.params.featuers"),
    ("a decoder: distil sequences", "the name sequences"),
    ("two teachers: take kd or uhcc", "the name uhcc"),
    ("the student is wider: put width_prun before it", "the name width_prun"),
    ("it is there: say --ressume", "the option say --ressume"),
    ("it is stale: report --resume writes it", "the option report --resume"),
    ("it is new: xmodal-kd desribe it", "the command desribe"),
    ("bring it as in docs/own_data.md#sounds", "the page docs/own_data.md#sounds"),
])  # fmt: skip
def test_this_very_check_sees_what_is_not_there(text: str, name: str) -> None:
    [refusal] = of_source(Path("x.py"), f"raise UserError(f{text!r})")
    assert name in list(wrong(refusal))


def test_it_reads_what_is_put_together() -> None:
    source = "def f():\n    return 'a' if x else f'b{y}'\nraise UserError(f'c{z}' + f())\n"
    assert [refusal.text for refusal in of_source(Path("x.py"), source)] == [f"c{HOLE}a", f"c{HOLE}b{HOLE}"]

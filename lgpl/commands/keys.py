"""Keys of stacked configs and of the command line, looked up before jsonargparse reads them: it
does not say in which file a key stands, nor what a misspelled one may have meant."""

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jsonargparse
import yaml
from jsonargparse._typehints import ActionTypeHint  # whether a parameter takes a class

from lgpl import shipped
from lgpl.errors import UserError, as_user_error, nearest

IN_CLASS = ("class_path", "init_args", "dict_kwargs")
STACK = "stack it after the recipe"


class Source(NamedTuple):
    """A config, or what the command line sets beside configs."""

    name: str  # begins a message, such as `-c a.yaml: `; nothing for the command line
    values: dict[str, Any]


def check_keys(args: Sequence[str], parser: jsonargparse.ArgumentParser) -> None:
    """Raises a UserError for the first key that no parameter has, the first class that is not
    there, and a config that stands before the recipe it belongs on."""
    sources = list(_sources(args))
    _check_order(sources)
    classes: dict[str, type] = {}
    for source in sources:
        _Walk(source.name, classes).mapping(source.values, _tree(parser), "")


def _sources(args: Sequence[str]) -> Iterator[Source]:
    """In the order in which they are applied; the command line's keys one by one."""
    left = iter(args)
    for arg in left:
        option, equals, value = arg.partition("=")
        if option in ("-c", "--config"):
            path = value if equals else next(left, "")
            if Path(file := shipped.config(path)).is_file():
                with as_user_error(f"-c {path}: is no YAML", yaml.YAMLError, UnicodeDecodeError):
                    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
                if content is not None and not isinstance(content, dict):
                    raise UserError(f"-c {path}: holds no keys with values.")
                yield Source(f"-c {path}: ", content or {})
        elif option.startswith("--") and "." in option:
            if not equals:
                value = next(left, "")
            yield Source("", _nested(option[2:].removesuffix("+").split("."), value))
        elif option in ("--model", "--data", "--trainer"):
            value = value if equals else next(left, "")
            yield Source("", _nested([option[2:]], value))


def _nested(keys: list[str], value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(yaml.YAMLError):  # jsonargparse says what is wrong
            value = yaml.safe_load(value)
    for key in reversed(keys):
        value = {key: value}
    return value


def _check_order(sources: Sequence[Source]) -> None:
    """A recipe says which model it is for. What stands before it is overwritten, and what is
    stacked on none has nothing to change."""
    configs = [source for source in sources if source.name]
    recipes = [source for source in configs if _is_recipe(source)]
    for number, source in enumerate(configs):
        if _is_recipe(source):
            break
        for recipe in configs[number + 1 :]:
            if _is_recipe(recipe) and (key := _overwritten(source.values, recipe.values)):
                said = f"{key} is set again by {recipe.name.strip(': ').removeprefix('-c ')}"
                raise UserError(f"{source.name}{said}; {STACK}.")
    chosen = any("model" in s.values and "class_path" in str(s.values) for s in sources)
    if configs and not recipes and not chosen:
        is_for_codes = "transformer" in str(configs[0].values.get("model"))
        base = "generator/c2i.yaml" if is_for_codes else "tokenizer/emoji.yaml"
        said = f"sets no model; {STACK} it belongs on"
        raise UserError(f"{configs[0].name}{said}, such as -c {base}.")


def _is_recipe(source: Source) -> bool:
    model = source.values.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _overwritten(first: Any, then: Any, key: str = "") -> str:
    """The first key that gets another value, if any does."""
    if isinstance(first, dict) and isinstance(then, dict):
        same = [name for name in first if name in then]
        inside = (_overwritten(first[n], then[n], f"{key}.{n}".strip(".")) for n in same)
        return next(filter(None, inside), "")
    return key if first != then else ""


Tree = dict[str, Any]  # keys by their parts; at the end an action of the parser


def _tree(parser: jsonargparse.ArgumentParser) -> Tree:
    tree: Tree = {}
    for action in parser._actions:
        if action.dest.endswith(".help"):  # `--model.help`, an option and no key
            continue
        *groups, name = action.dest.split(".")
        place = tree
        for group in groups:
            inner = place.get(group)
            place[group] = inner if isinstance(inner, dict) else {"": inner}
            place = place[group]
        place.setdefault(name, action)
    return tree


class _Walk:
    """Through the values of one source, by the parameters of the classes that it or one before it
    names."""

    def __init__(self, source: str, classes: dict[str, type]) -> None:
        self.source, self.classes = source, classes

    def mapping(self, values: dict[str, Any], tree: Tree, above: str) -> None:
        for name, value in values.items():
            plain = str(name).removesuffix("+")  # `callbacks+` adds to a list
            key, known = f"{above}{plain}", tree.get(plain)
            if known is None:
                near = nearest(str(name), [*filter(None, tree)])
                before = above if self.source else f"--{above}"
                near, where = near.replace("mean ", f"mean {before}"), f"{before}{name}"
                raise UserError(f"{self.source}{where}: no such key{near or '.'}")
            if isinstance(known, dict):
                if isinstance(value, dict) and "class_path" not in value:
                    self.mapping(value, known, f"{key}.")
            else:
                self.value(value, known, key)

    def value(self, value: Any, action: Any, key: str) -> None:
        """One that may be a class, or a list of them."""
        if isinstance(value, list):
            for number, item in enumerate(value):
                if isinstance(item, dict) and "class_path" in item:
                    self.of_class(item, f"{key}[{number}]")
                    self.classes[key] = self.classes.get(f"{key}[{number}]", object)
        elif isinstance(value, str) and _names_class(value, action):
            self.of_class({"class_path": value}, key)
        elif isinstance(value, dict) and (
            "class_path" in value or "init_args" in value or key in self.classes
        ):
            self.of_class(value, key, getattr(action, "default", None))

    def of_class(self, value: dict[str, Any], key: str, default: Any = None) -> None:
        if isinstance(path := value.get("class_path"), str):
            found = self.find(path, f"{key}.class_path")
            if found is None:
                self.classes.pop(key, None)  # a short name, which jsonargparse looks up
                return
            self.classes[key] = found
        elif key not in self.classes:
            path = default.get("class_path") if isinstance(default, dict) else None
            if path is None:
                if self.source and "model" in key:
                    said = f"{key}.init_args, but no config before it names the class"
                    raise UserError(f"{self.source}{said}; {STACK} it belongs on.")
                return
            self.classes[key] = self.find(path, key) or object
        cls = self.classes[key]
        if cls is object or not isinstance(cls, type):
            return
        inner = value.get("init_args")
        short = {name: v for name, v in value.items() if name not in IN_CLASS}
        known = _parameters(cls)
        if known is not None:
            if isinstance(inner, dict):
                self.mapping(inner, known, f"{key}.init_args.")
            if short:
                self.mapping(short, known, f"{key}.")

    def find(self, path: str, key: str) -> Any:
        """The class of a path; None for a name without a module."""
        if "." not in path:
            return None
        names = path.split(".")
        place: Any = None
        for number, name in enumerate(names):
            found = _below(place, names[: number + 1])
            if found is None:
                before = ".".join(names[:number])
                near = nearest(name, _names_in(place))
                near = near.replace("mean ", f"mean {before}.") if before else near
                where = key if self.source else f"--{key}"
                what = f"{before} has no {name}" if before else f"there is no module {name}"
                raise UserError(f"{self.source}{where}: {path}: {what}{near or '.'}")
            place = found
        return place


def _names_class(value: str, action: Any) -> bool:
    """Whether a text stands for a class, as `--trainer.callbacks+=lgpl.callbacks.EMA` does."""
    typehint = getattr(action, "_typehint", None)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", value):
        return False
    return ActionTypeHint.is_subclass_typehint(typehint, all_subtypes=False, also_lists=True)


def _below(place: Any, names: list[str]) -> Any:
    """A module, or what an object holds; None where it is not there. Errors of a module's own code
    are raised as they are."""
    if place is not None and hasattr(place, names[-1]):
        return getattr(place, names[-1])
    if place is not None and not isinstance(place, ModuleType):
        return None
    module = ".".join(names)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise


def _names_in(place: Any) -> list[str]:
    if place is None:
        return ["lgpl", "lightning", "torch"]
    inside = [module.name for module in pkgutil.iter_modules(getattr(place, "__path__", []))]
    lazy = getattr(getattr(place, "__getattr__", None), "places", {})
    return [name for name in (*dir(place), *inside, *lazy) if not name.startswith("_")]


_known: dict[type, Tree | None] = {}


def _parameters(cls: type) -> Tree | None:
    """The keys that `init_args` may have; None where that is not known, as with **kwargs that go
    where nobody can see."""
    if cls not in _known:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser._actions.clear()
        try:
            parser.add_class_arguments(cls, fail_untyped=False, sub_configs=True)
        except (ValueError, TypeError):  # jsonargparse will say so itself
            _known[cls] = None
        else:
            _known[cls] = _tree(parser)
    return _known[cls]

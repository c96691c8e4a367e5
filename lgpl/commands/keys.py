"""Keys of stacked configs and of the command line, looked up before jsonargparse reads them: it
does not say in which file a key stands, nor what a misspelled one may have meant."""

import contextlib
import importlib
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jsonargparse
import yaml
from jsonargparse._typehints import (  # which classes a parameter takes
    get_all_subclass_paths,
    get_subclass_types,
    resolve_class_path_by_name,
)

from lgpl import shipped
from lgpl.errors import UserError, nearest

IN_CLASS = ("class_path", "init_args", "dict_kwargs")
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # of a class, as text may give it
STACK = "stack it after the recipe"


class Source(NamedTuple):
    """A config, or what the command line sets beside configs."""

    name: str  # begins a message, such as `-c a.yaml: `; nothing for the command line
    values: dict[str, Any]
    is_shipped: bool = False  # one of lgpl's own


def check_keys(args: Sequence[str], parser: jsonargparse.ArgumentParser) -> None:
    """Raises a UserError for the first key that no parameter has, the first class that is not
    there, and a config that stands before the recipe it belongs on."""
    sources = list(_sources(args))
    _check_order(sources)
    classes: dict[str, type] = {}
    tree = _tree(parser)
    for source in sources:
        _Walk(source.name, classes, tree).mapping(source.values, tree, "")


def _sources(args: Sequence[str]) -> Iterator[Source]:
    """In the order in which they are applied; the command line's keys one by one."""
    left = iter(args)
    for arg in left:
        option, equals, value = arg.partition("=")
        if option in ("-c", "--config"):
            path = value if equals else next(left, "")
            if not path:
                raise UserError("-c: name a config; `lgpl configs` lists the recipes.")
            if Path(file := shipped.config(path)).is_file():
                try:
                    content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError) as error:
                    raise UserError(f"-c {path}: is no YAML ({_first_fault(error)}).") from error
                if content is not None and not isinstance(content, dict):
                    raise UserError(f"-c {path}: holds no keys with values.")
                is_shipped = shipped.CONFIGS in Path(file).resolve().parents
                yield Source(f"-c {path}: ", content or {}, is_shipped)
        elif option.startswith("--") and "." in option:
            if not equals:
                value = next(left, "")
            yield Source("", _nested(option[2:].removesuffix("+").split("."), value))
        elif option in ("--model", "--data", "--trainer"):
            value = value if equals else next(left, "")
            yield Source("", _nested([option[2:]], value))


def _first_fault(error: Exception) -> str:
    """What is wrong with a file, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + " ".join(str(getattr(error, "problem", error)).split())


def _nested(keys: list[str], value: str) -> Any:
    nested: Any = value
    if value.lstrip()[:1] in ("{", "[") or NAME.fullmatch(value):  # which may be `null`
        with contextlib.suppress(yaml.YAMLError):  # jsonargparse says what is wrong
            nested = yaml.safe_load(value)
    for key in reversed(keys):
        nested = {key: nested}
    return nested


def _check_order(sources: Sequence[Source]) -> None:
    """A recipe says which model it is for. What stands before it is overwritten, and what is
    stacked on none has nothing to change."""
    configs = [source for source in sources if source.name]
    for number, source in enumerate(configs):
        if _is_recipe(source):
            break
        for recipe in configs[number + 1 :]:
            lost = {*_overwritten(source.values, recipe.values)} if _is_recipe(recipe) else set()
            if not lost:
                continue
            first = next(key for key in _leaves(source.values) if key in lost)
            said = f"{first} is set again by {recipe.name.strip(': ').removeprefix('-c ')}"
            if source.is_shipped or lost == {*_leaves(source.values)}:
                raise UserError(f"{source.name}{said}; {STACK}.")
            print(f"lgpl: {source.name}{said}, which counts.", file=sys.stderr)
    chosen = any(map(_is_recipe, sources))
    if configs and not chosen:
        is_for_codes = "transformer" in str(configs[0].values.get("model"))
        base = "generator/c2i.yaml" if is_for_codes else "tokenizer/emoji.yaml"
        said = f"sets no model; {STACK} it belongs on"
        raise UserError(f"{configs[0].name}{said}, such as -c {base}.")


def _is_recipe(source: Source) -> bool:
    model = source.values.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _overwritten(first: Any, then: Any, key: str = "") -> Iterator[str]:
    """The keys that get another value."""
    if isinstance(first, dict) and isinstance(then, dict):
        for name in first:
            if name in then:
                yield from _overwritten(first[name], then[name], f"{key}.{name}".strip("."))
    elif first != then:
        yield from _leaves(first, key)


def _leaves(values: Any, key: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _leaves(value, f"{key}.{name}".strip("."))
    else:
        yield key


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

    def __init__(self, source: str, classes: dict[str, type], tree: Tree) -> None:
        self.source, self.classes, self.tree = source, classes, tree

    def mapping(self, values: dict[str, Any], tree: Tree, above: str) -> None:
        for name, value in values.items():
            plain = str(name).removesuffix("+")  # `callbacks+` adds to a list
            key, known = f"{above}{plain}", tree.get(plain)
            if known is None:
                near = nearest(str(name), [*filter(None, tree)])
                before = above if self.source else f"--{above}"
                near = near.replace("mean ", f"mean {before}") or self.elsewhere(plain)
                raise UserError(f"{self.source}{before}{name}: no such key{near or '.'}")
            if isinstance(known, dict):
                if isinstance(value, list):
                    said = "should hold keys with values, not a list"
                    raise UserError(f"{self.source}{key}: {said}.")
                if isinstance(value, dict) and "class_path" not in value:
                    self.mapping(value, known, f"{key}.")
            else:
                self.value(value, known, key)

    def elsewhere(self, name: str) -> str:
        """Offers the key of this name in another group, or at the top."""
        dashes = "" if self.source else "--"
        for group, inner in self.tree.items():
            if group == name or (isinstance(inner, dict) and name in inner):
                return f"; did you mean {dashes}{group}{'' if group == name else f'.{name}'}?"
        return ""

    def value(self, value: Any, action: Any, key: str) -> None:
        """One that may be a class, or a list of them."""
        typehint = getattr(action, "_typehint", None)
        kinds = get_subclass_types(typehint, also_lists=True) or ()
        if isinstance(value, list) and kinds:
            for number, item in enumerate(value):
                self.value(item, action, f"{key}[{number}]")
                self.classes[_short(key)] = self.classes.get(_short(f"{key}[{number}]"), object)
        elif isinstance(value, str) and kinds and NAME.fullmatch(value):
            if "." in value or str not in (typehint, *typing.get_args(typehint)):
                self.of_class({"class_path": value}, key, kinds)
        elif isinstance(value, dict) and (
            "class_path" in value or "init_args" in value or _short(key) in self.classes
        ):
            self.of_class(value, key, kinds, getattr(action, "default", None))

    def of_class(
        self, value: dict[str, Any], full: str, kinds: tuple[type, ...], default: Any = None
    ) -> None:
        """A value with a class of one of these kinds, or with arguments of the one that is known;
        `full` is its key."""
        key = _short(full)
        if isinstance(path := value.get("class_path"), str):
            self.classes[key] = self.find(path, f"{full}.class_path", kinds)
        elif key not in self.classes:
            path = default.get("class_path") if isinstance(default, dict) else None
            if path is None:
                if self.source and "model" in key:
                    said = f"{full}.init_args, but no config before it names the class"
                    raise UserError(f"{self.source}{said}; {STACK} it belongs on.")
                return
            self.classes[key] = self.find(path, full, kinds)
        cls = self.classes[key]
        if cls is object or not isinstance(cls, type):
            return
        inner = value.get("init_args")
        short = {name: v for name, v in value.items() if name not in IN_CLASS}
        known = _parameters(cls)
        if known is not None:
            if isinstance(inner, dict):
                self.mapping(inner, known, f"{full}.init_args.")
            if short:
                self.mapping(short, known | dict.fromkeys(IN_CLASS), f"{full}.")

    def find(self, path: str, key: str, kinds: tuple[type, ...]) -> Any:
        """The class of a path, or of one of these kinds by its name alone."""
        where = f"{self.source}{key}" if self.source else f"--{key}"
        if "." not in path:
            short, path = path, resolve_class_path_by_name(kinds, path)  # type: ignore[arg-type]
            if "." not in path:
                there = [p for kind in kinds for p in get_all_subclass_paths(kind)]
                near = nearest(short, {p.rpartition(".")[2] for p in there})
                raise UserError(f"{where}: {short} is no class that is known here{near or '.'}")
        names = path.split(".")
        place: Any = None
        for number, name in enumerate(names):
            found = _below(place, names[: number + 1])
            if found is None:
                before = ".".join(names[:number])
                near = nearest(name, _names_in(place))
                near = near.replace("mean ", f"mean {before}.") if before else near
                what = f"{before} has no {name}" if before else f"there is no module {name}"
                raise UserError(f"{where}: {path}: {what}{near or '.'}")
            place = found
        is_known = kinds and not any(getattr(kind, "_is_protocol", False) for kind in kinds)
        if is_known and isinstance(place, type) and not issubclass(place, kinds):
            wanted = " or ".join(dict.fromkeys(kind.__name__ for kind in kinds))
            raise UserError(f"{where}: {path} is no {wanted}.")
        return place


def _short(key: str) -> str:
    """A key may leave `init_args` out: `model.autoencoder.width`."""
    return key.replace(".init_args", "")


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

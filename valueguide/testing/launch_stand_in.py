"""A stand-in for the part of `launch` and `launch_ros` that this project's launch files use.

It is not ROS's launch, which no registry holds as a wheel. It starts the real installed executables
of an unmodified launch file, and knows the classes in `_MODULES` with the arguments that are written
out below. Everything else raises: nothing is ever skipped silently. Unlike the real one, an argument
that no file declares is an error.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from valueguide.errors import ConfigError, mismatch
from valueguide.testing.launch_processes import Command, Processes

_WHERE = "launch stand-in"


@dataclass
class LaunchContext:
    """What substitutions are evaluated in: the values of the arguments."""

    launch_configurations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchConfiguration:
    """The value of a launch argument; always text, as in the real one."""

    name: str
    default: str | None = None

    def perform(self, context: LaunchContext) -> str:
        value = context.launch_configurations.get(self.name, self.default)
        if value is None:
            raise ConfigError(f"{_WHERE}: expected a launch argument {self.name!r}, found none declared")
        return value


@dataclass(frozen=True)
class EqualsSubstitution:
    """The text "true" or "false". Compares texts; to the real one "1" equals "true" and "1.0", too."""

    left: Any
    right: Any

    def perform(self, context: LaunchContext) -> str:
        return str(perform(self.left, context) == perform(self.right, context)).lower()


@dataclass(frozen=True)
class NotEqualsSubstitution(EqualsSubstitution):
    """The opposite."""

    def perform(self, context: LaunchContext) -> str:
        return "false" if super().perform(context) == "true" else "true"


class IfCondition:
    """True for 1 and true, false for 0 and false (any case); anything else is an error."""

    def __init__(self, predicate_expression: Any) -> None:
        self._expression = predicate_expression

    def evaluate(self, context: LaunchContext) -> bool:
        text = str(perform(self._expression, context)).strip().lower()
        if text not in ("true", "1", "false", "0"):
            raise ConfigError(mismatch(_WHERE, "a condition", "true or false", repr(text)))
        return text in ("true", "1")


class UnlessCondition(IfCondition):
    """The opposite."""

    def evaluate(self, context: LaunchContext) -> bool:
        return not super().evaluate(context)


class DeclareLaunchArgument:
    """An argument of the launch file. Without a default it must be given."""

    def __init__(
        self,
        name: str,
        *,
        default_value: Any = None,
        description: str = "",
        choices: Sequence[str] | None = None,
    ) -> None:
        self.name, self.default_value, self.description = name, default_value, description
        self.choices = choices

    def default_text(self) -> str | None:
        """The default for people: the text, `$(name)` for another argument's value, None without one."""
        if isinstance(self.default_value, LaunchConfiguration):
            return f"$({self.default_value.name})"
        if isinstance(self.default_value, EqualsSubstitution):
            return "it depends"
        return None if self.default_value is None else str(self.default_value)

    def declare(self, context: LaunchContext) -> None:
        """Check the given value, or take the default. Raises ConfigError."""
        values = context.launch_configurations
        if self.name not in values:
            if self.default_value is None:
                raise ConfigError(f"launch argument {self.name}: expected a value, found none")
            values[self.name] = str(perform(self.default_value, context))
        if self.choices is not None and values[self.name] not in self.choices:
            expected = f"one of {', '.join(self.choices)}"
            raise ConfigError(mismatch("launch argument", self.name, expected, repr(values[self.name])))


@dataclass(frozen=True)
class PythonLaunchDescriptionSource:
    """The path of another launch file."""

    path: str


class IncludeLaunchDescription:
    """Another launch file, with further arguments. As in the real one, it sees all arguments of this one."""

    def __init__(
        self, source: PythonLaunchDescriptionSource, *, launch_arguments: Iterable[tuple[str, Any]] = ()
    ) -> None:
        self.path, self.arguments = Path(source.path), tuple(launch_arguments)

    def entities(self, context: LaunchContext) -> list[Any]:
        """What the file holds, after its arguments are set."""
        for name, value in self.arguments:
            context.launch_configurations[name] = str(perform(value, context))
        return read(self.path).entities


class ParameterValue:
    """A parameter whose type is fixed: without it, the text of an argument is read as YAML."""

    def __init__(self, value: Any, *, value_type: type | None = None) -> None:
        self._value, self._type = value, value_type

    def evaluate(self, context: LaunchContext) -> Any:
        text = str(perform(self._value, context))
        if self._type is str:
            return text
        value = yaml.safe_load(text)
        if self._type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self._type is not None and type(value) is not self._type:
            raise ConfigError(mismatch(_WHERE, "a parameter", self._type.__name__, repr(text)))
        return value


class Node:
    """One process: an installed executable of a package."""

    def __init__(
        self,
        *,
        package: str,
        executable: str,
        name: str,
        namespace: Any = "",
        parameters: Sequence[Any] = (),
        remappings: Iterable[tuple[Any, Any]] = (),
        arguments: Iterable[Any] = (),
        ros_arguments: Iterable[Any] = (),
        output: str = "log",
        condition: IfCondition | None = None,
    ) -> None:
        self.package, self.executable, self.name, self.namespace = package, executable, name, namespace
        self.parameters, self.remappings, self.arguments = (
            tuple(parameters),
            tuple(remappings),
            tuple(arguments),
        )
        self.ros_arguments = tuple(ros_arguments)
        self.condition = condition

    def command(self, context: LaunchContext, prefixes: Sequence[Path], folder: Path, number: int) -> Command:
        """Its command line. Writes the parameters to files in `folder`. Raises ConfigError."""
        name = str(perform(self.name, context))
        namespace = str(perform(self.namespace, context)).strip("/")
        line = [str(find_executable(self.package, self.executable, prefixes))]
        line += [str(perform(text, context)) for text in self.arguments]
        line += ["--ros-args", *(str(perform(text, context)) for text in self.ros_arguments)]
        line += ["-r", f"__node:={name}"]
        if namespace:
            line += ["-r", f"__ns:=/{namespace}"]
        for i, source in enumerate(self.parameters):
            line += ["--params-file", str(self._file(source, context, folder / f"{name}-{number}-{i}.yaml"))]
        for old, new in self.remappings:
            line += ["-r", f"{perform(old, context)}:={perform(new, context)}"]
        return Command(f"{name}-{number}", line)

    def _file(self, source: Any, context: LaunchContext, path: Path) -> Path:
        if not isinstance(source, Mapping):
            return Path(str(perform(source, context)))
        values = {key: parameter(value, context) for key, value in source.items()}
        path.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
        return path


@dataclass
class LaunchDescription:
    """The entities of a launch file, in the order in which they are visited."""

    entities: list[Any] = field(default_factory=list)


def perform(value: Any, context: LaunchContext) -> Any:
    """Evaluate a substitution, or a list of them and texts, which is joined; other values stay."""
    if isinstance(value, LaunchConfiguration | EqualsSubstitution):
        return value.perform(context)
    if isinstance(value, list | tuple):
        return "".join(str(perform(part, context)) for part in value)
    if isinstance(value, str | Path | int | float):
        return value
    raise ConfigError(mismatch(_WHERE, "a value", "a text or a LaunchConfiguration", type(value).__name__))


def parameter(value: Any, context: LaunchContext) -> Any:
    """A node's parameter. As in the real launch, an argument's text is read as YAML, so "4" is an int."""
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    if isinstance(value, LaunchConfiguration):
        return ParameterValue(value).evaluate(context)
    if isinstance(value, bool | int | float | str | list):
        return value
    raise ConfigError(mismatch(_WHERE, "a parameter", "a plain value or an argument", type(value).__name__))


def find_executable(package: str, executable: str, prefixes: Sequence[Path]) -> Path:
    """prefix/lib/package/executable in the first prefix that has it. Raises ConfigError."""
    for prefix in prefixes:
        path = prefix / "lib" / package / executable
        if path.is_file():
            return path
    raise ConfigError(f"{package}: expected the installed executable {executable!r}, found none")


_MODULES: dict[str, tuple[type, ...]] = {
    "launch": (LaunchContext, LaunchDescription),
    "launch.actions": (DeclareLaunchArgument, IncludeLaunchDescription),
    "launch.conditions": (IfCondition, UnlessCondition),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (EqualsSubstitution, LaunchConfiguration, NotEqualsSubstitution),
    "launch_ros": (),
    "launch_ros.actions": (Node,),
    "launch_ros.parameter_descriptions": (ParameterValue,),
}


@contextmanager
def _installed() -> Iterator[None]:
    """`import launch` finds the stand-in while a launch file is read."""

    def missing(module: str, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(f"{_WHERE}: {module}.{name} is not in it; use the real `ros2 launch`")

    before = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] in ("launch", "launch_ros")
    }
    for name in before:
        del sys.modules[name]
    for name, classes in _MODULES.items():
        module = types.ModuleType(name)
        module.__dict__.update({item.__name__: item for item in classes})
        module.__dict__["__getattr__"] = lambda item, name=name: missing(name, item)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("launch", "launch_ros")]:
            del sys.modules[name]
        sys.modules.update(before)


def read(path: Path) -> LaunchDescription:
    """The description that a launch file generates. Raises ConfigError when it uses more than there is."""
    spec = importlib.util.spec_from_file_location(f"launch_file_{path.name.split('.')[0]}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: expected a Python launch file, found none")
    module = importlib.util.module_from_spec(spec)
    with _installed():
        try:
            spec.loader.exec_module(module)
            return module.generate_launch_description()
        except ImportError as error:
            raise ConfigError(f"{path}: {_WHERE}: {error}") from error


def declared(description: LaunchDescription) -> dict[str, DeclareLaunchArgument]:
    """The arguments of a launch file by name, with those of included files that it does not set itself."""
    found: dict[str, DeclareLaunchArgument] = {}
    for item in description.entities:
        if isinstance(item, DeclareLaunchArgument):
            found.setdefault(item.name, item)
        elif isinstance(item, IncludeLaunchDescription):
            fixed = {name for name, _ in item.arguments}
            inner = declared(read(item.path))
            found |= {name: inner[name] for name in inner if name not in found and name not in fixed}
    return found


def plan(path: Path, arguments: Mapping[str, str], prefixes: Sequence[Path], folder: Path) -> list[Command]:
    """The processes that a launch file asks for with these arguments; parameter files go to `folder`.

    prefixes: where packages are installed, as in AMENT_PREFIX_PATH. Raises ConfigError on an unknown,
    missing or impossible argument, an executable that is not there, or an entity that is unknown here.
    """
    description = read(path)
    known = sorted(declared(description))
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ConfigError(mismatch(path.name, "arguments", f"some of {', '.join(known)}", ", ".join(unknown)))
    context = LaunchContext(dict(arguments))
    nodes = list(_visit(description.entities, context))
    return [node.command(context, prefixes, folder, number) for number, node in enumerate(nodes, 1)]


def _visit(entities: Iterable[Any], context: LaunchContext) -> Iterator[Node]:
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.declare(context)
        elif isinstance(entity, IncludeLaunchDescription):
            yield from _visit(entity.entities(context), context)
        elif isinstance(entity, Node):
            if entity.condition is None or entity.condition.evaluate(context):
                yield entity
        else:
            raise ConfigError(f"{_WHERE}: {type(entity).__name__} is not in it; use the real `ros2 launch`")


def launch(
    path: Path,
    arguments: Mapping[str, str],
    environment: Mapping[str, str],
    folder: Path,
    echo: Callable[[str], None] | None = None,
) -> Processes:
    """Start what the launch file asks for. Logs and parameter files go to `folder`.

    environment: of the nodes; its AMENT_PREFIX_PATH says where packages are. echo: called with every
    line that a node prints. The caller must `stop()` the result, or use it in a `with`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefixes = [Path(prefix) for prefix in environment.get("AMENT_PREFIX_PATH", "").split(":") if prefix]
    return Processes(plan(path, arguments, prefixes, folder), environment, folder, echo)

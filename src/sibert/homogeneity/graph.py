"""The graph of a module: exported operations with the parameters, constants and lines of source that they belong to."""

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

TORCH = str(Path(torch.__file__).parent)
HERE = str(Path(__file__).parent)
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Place:
    """Where an operation comes from.

    Attributes:
        module: Path of the module that runs it; "" = the outermost.
        operation: Its name without namespace and overload, such as `softmax`.
        file: Source file, outside torch where there is such a frame.
        line: In that file.
    """

    module: str
    operation: str
    file: str
    line: int

    def __str__(self) -> str:
        source = f" ({Path(self.file).name}:{self.line})" if self.file else ""
        return f"{self.operation} in {self.module or 'the model'}{source}"


@dataclass(frozen=True)
class Graph:
    """Operations in the order in which they run, as far as outputs depend on them.

    Attributes:
        nodes: Of the exported program, without those that reach no output.
        parameters: Name of the parameter by placeholder; tied parameters have one name.
        constants: What the program holds beside parameters, by placeholder, where its values are part of the program:
            masks and other constants, but no running statistics.
        outputs: Floating-point outputs by their paths.
        shapes: Of the parameters, unused ones included.
    """

    nodes: tuple[fx.Node, ...]
    parameters: Mapping[str, str]
    constants: Mapping[str, Tensor]
    outputs: Mapping[str, fx.Node]
    shapes: Mapping[str, tuple[int, ...]]


class Selected(nn.Module):
    """A module of which only a part of the output counts.

    Args:
        module: Any.
        select: From its output to what counts.
    """

    def __init__(self, module: nn.Module, select: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module = module
        self.select = select

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What counts of the module's output."""
        return self.select(self.module(*args, **kwargs))


def operation_name(target: Any) -> str:
    """Namespace and name without overload: `aten.softmax`."""
    packet = getattr(target, "overloadpacket", target)
    name = getattr(packet, "_qualified_op_name", None) or getattr(target, "__name__", str(target))
    return str(name).replace("::", ".")


def place(node: fx.Node) -> Place:
    """Where a node comes from."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((TORCH, HERE))]
    own = own or [frame for frame in frames if not frame[0].startswith(HERE)]
    file, line = own[-1] if own else ("", "0")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = str(stack[-1][0]) if stack else ""
    name = operation_name(node.target).removeprefix("aten.")
    return Place(re.sub(r"^module\.?|@\d+$", "", module), name, file, int(line))


def trace(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    select: Callable[[Any], Any],
    has_rule: Callable[[str], bool],
) -> Graph:
    """Export a module and name what its graph holds.

    Args:
        module: In the mode (training or evaluation) in which it is analysed.
        args: Example inputs; only their shapes and types matter.
        kwargs: More of them.
        select: From the module's output to what counts.
        has_rule: Operations without a rule are replaced by those of torch's own decomposition, where there is one.

    Raises:
        ValueError: The module cannot be exported.
    """
    if not any(True for _ in module.parameters()):
        raise ValueError("the module has no parameters, so there is nothing to rescale")
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"parameter {name} is {parameter.dtype}, but only real floating-point parameters can be rescaled: "
                "register it as a buffer, or leave out the part of the model that has it"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _exported(Selected(module, select), args, kwargs)
        program = _decomposed(program, has_rule)
    for node in program.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and any(not isinstance(size, int) for size in value.shape):
                raise ValueError(
                    f"the shape of the result of {place(node)} depends on values; only fixed shapes are analysed"
                )
    return _named(program, module)


def _exported(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(args), dict(kwargs), strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "DynamicCache" in str(error) or "Cache" in first:
            advice = "call it with use_cache=False"
        elif "data-dependent" in str(error).lower() or "GuardOnDataDependent" in type(error).__name__:
            advice = "its control flow depends on values of tensors: replace that by torch.where or torch.cond"
        else:
            advice = "see that it runs on these inputs, and that its control flow does not depend on values of tensors"
        raise ValueError(f"torch.export cannot trace the module: {first}; {advice}") from error


def _decomposed(program: ExportedProgram, has_rule: Callable[[str], bool]) -> ExportedProgram:
    """No in-place operations, and no operation without a rule that torch can express by others."""
    program = program.run_decompositions({})
    table = torch.export.default_decompositions()
    while True:
        targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
        missing = {
            target: table[target] for target in targets if not has_rule(operation_name(target)) and target in table
        }
        if not missing:
            return program
        before = {operation_name(target) for target in targets}
        program = program.run_decompositions(missing)
        if before == {operation_name(node.target) for node in program.graph.nodes if node.op == "call_function"}:
            return program


def _named(program: ExportedProgram, module: nn.Module) -> Graph:
    own = dict(module.named_parameters(remove_duplicate=False))
    canonical = {id(parameter): name for name, parameter in module.named_parameters()}
    parameters, constants = {}, {}
    for spec in program.graph_signature.input_specs:
        name, target = spec.arg.name, str(spec.target).removeprefix("module.")
        if spec.kind is InputKind.PARAMETER:
            parameters[name] = canonical[id(own[target])]
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            tensor = {**program.state_dict, **program.constants}[str(spec.target)]
            if spec.kind is InputKind.CONSTANT_TENSOR or not spec.persistent or not tensor.is_floating_point():
                constants[name] = tensor
    outputs = _outputs(program)
    # What only updates running statistics goes away, so that the users of a node are those that matter.
    end = next(node for node in program.graph.nodes if node.op == "output")
    end.args = (tuple(outputs.values()),)
    program.graph.eliminate_dead_code()
    needed = set(outputs.values())
    for node in reversed(program.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return Graph(tuple(node for node in program.graph.nodes if node in needed), parameters, constants, outputs, shapes)


def _outputs(program: ExportedProgram) -> dict[str, fx.Node]:
    nodes = {node.name: node for node in program.graph.nodes}
    specs = program.graph_signature.output_specs
    names = [
        getattr(spec.arg, "name", None) if spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT) else None
        for spec in specs
    ]
    paths = _paths(program, sum(spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT) for spec in specs))
    user = [
        name
        for spec, name in zip(specs, names, strict=True)
        if spec.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
    ]
    outputs = {}
    for path, name in zip(paths, user, strict=True):
        value = nodes[name].meta.get("val") if name in nodes else None
        if isinstance(value, Tensor) and value.is_floating_point():
            outputs[path] = nodes[str(name)]
    if not outputs:
        raise ValueError("the module gives no floating-point tensor: name an output that has one")
    return outputs


def _paths(program: ExportedProgram, count: int) -> list[str]:
    """Names of the outputs, such as `logits` or `0`."""
    spec = program.call_spec.out_spec
    placeholders = tree_unflatten(list(range(count)), spec)
    keys, _ = tree_flatten_with_path(placeholders)
    return [_readable(path) or "output" for path, _ in keys]


def _readable(path: Collection[Any]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)

"""No dead settings: the program reads every setting somewhere, so that none can be set without an effect.

The name alone would prove little (`seed`, `path` and `kind` are read everywhere), so reads are told apart by the class of what they
are read from: annotations of parameters, fields and returns are followed through assignments, loops and attributes.
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import tunalab
from tunalab.settings.schema import RunConfig

PACKAGE = Path(tunalab.__file__).parent
# They declare settings, check them and lay them over each other: what is read there has no effect on a run.
DECLARE = {f"settings/{name}.py" for name in ("declaration", "schema", "loading", "layers", "reference")}
# Setting -> why nothing else needs to read it.
EXCEPTIONS: dict[tuple[str, str], str] = {}

Reads = set[tuple[str, str]]


def settings_classes() -> dict[str, type]:
    """Every dataclass of settings that a run can hold, and those they inherit from, by name."""
    found: dict[str, type] = {}

    def add(cls: type) -> None:
        found[cls.__name__] = cls
        for hint in (*cls.__bases__, *typing.get_type_hints(cls).values()):
            for part in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(part) and part.__name__ not in found:  # type: ignore[union-attr]
                    add(part)  # type: ignore[arg-type]

    add(RunConfig)
    return found


SETTINGS = settings_classes()


class Classes:
    """What annotations say: class -> attribute -> class, function -> class it returns. A container stands for its members."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.attributes: dict[str, dict[str, str]] = {name: {} for name in SETTINGS}
        self.bases: dict[str, list[str]] = {}
        self.returns: dict[str, str] = {}
        nodes = [node for tree in trees for node in ast.walk(tree)]
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                self.attributes.setdefault(node.name, {})
                self.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        self.note(node.name, item.target.id, self.named(item.annotation))
            elif isinstance(node, ast.FunctionDef) and node.returns is not None:
                returned = self.named(node.returns)
                if returned is not None:
                    self.returns[node.name] = returned

    def note(self, owner: str, attribute: str, cls: str | None) -> None:
        if cls is not None:
            self.attributes[owner][attribute] = cls

    def named(self, annotation: ast.expr | None) -> str | None:
        """The class that an annotation names: X, "X", X | None, Mapping[str, X], tuple[int, X]."""
        if annotation is None:
            return None
        for node in ast.walk(annotation):
            names = [node.id] if isinstance(node, ast.Name) else []
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [part.id for part in ast.walk(ast.parse(node.value)) if isinstance(part, ast.Name)]
            for name in names:
                if name in self.attributes:
                    return name
        return None

    def line(self, cls: str) -> list[str]:
        """A class and those it inherits from."""
        return [cls, *(above for base in self.bases.get(cls, []) if base in self.attributes for above in self.line(base))]

    def attribute(self, cls: str, name: str) -> str | None:
        return next((self.attributes[one][name] for one in self.line(cls) if name in self.attributes[one]), None)


class Reader(ast.NodeVisitor):
    """Walks one file in order; ``reads`` collects (settings class, field)."""

    def __init__(self, classes: Classes, reads: Reads) -> None:
        self.classes = classes
        self.reads = reads
        self.scopes: list[dict[str, str]] = [{}]
        self.owner: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.owner.append(node.name)
        self.generic_visit(node)
        self.owner.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        scope = {argument.arg: cls for argument in arguments if (cls := self.classes.named(argument.annotation))}
        if self.owner and arguments and arguments[0].arg == "self":
            scope["self"] = self.owner[-1]
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self.bind_class(node.target, self.classes.named(node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self.bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.bind(node.target, node.iter)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:  # bound before the element is read, though it stands behind it
            self.visit(generator.iter)
            self.bind(generator.target, generator.iter)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehension

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            cls = self.class_of(node.value)
            if cls in SETTINGS:
                self.reads.add((cls, node.attr))
        self.generic_visit(node)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        """What a name stands for after an assignment; a loop's name stands for a member, which has its container's class here."""
        if isinstance(target, ast.Tuple):
            expected = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for part, its in zip(target.elts, expected, strict=False):  # a starred target takes several, or none
                self.bind(part, its)
        else:
            self.bind_class(target, self.class_of(value))

    def bind_class(self, target: ast.expr, cls: str | None) -> None:
        if isinstance(target, ast.Name):
            if cls is None:
                self.scopes[-1].pop(target.id, None)
            else:
                self.scopes[-1][target.id] = cls
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self" and self.owner:
            self.classes.note(self.owner[-1], target.attr, cls)

    def class_of(self, node: ast.expr) -> str | None:
        """The class of an expression, or of the members of the container that it is."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            owner = self.class_of(node.value)
            return None if owner is None else self.classes.attribute(owner, node.attr)
        if isinstance(node, ast.Subscript):
            return self.class_of(node.value)
        if isinstance(node, ast.BoolOp):
            return next((cls for value in node.values if (cls := self.class_of(value))), None)
        if isinstance(node, ast.IfExp):
            return self.class_of(node.body) or self.class_of(node.orelse)
        if isinstance(node, ast.Call):
            return self.class_of_call(node)
        return None

    def class_of_call(self, node: ast.Call) -> str | None:
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in ("values", "items", "get", "pop"):
                return self.class_of(node.func.value)
            return self.classes.returns.get(node.func.attr)
        if isinstance(node.func, ast.Name):
            if node.func.id in self.classes.attributes:
                return node.func.id
            if node.func.id in ("replace", "next", "iter", "list", "sorted", "zip", "enumerate") and node.args:
                return self.class_of(node.args[0])
            return self.classes.returns.get(node.func.id)
        return None


def parsed(paths: list[Path]) -> list[ast.Module]:
    return [ast.parse(path.read_text(), str(path)) for path in paths]


def reads_of(trees: list[ast.Module], declared: list[ast.Module]) -> Reads:
    classes = Classes([*trees, *declared])
    reads: Reads = set()
    for _ in range(2):  # what __init__ keeps in self is known to the methods of other files only after all have been walked
        for tree in trees:
            Reader(classes, reads).visit(tree)
    return {(one, name) for cls, name in reads for one in heirs(cls)}


def heirs(cls: str) -> list[str]:
    """What is read from a class is read from those that inherit from it."""
    return [name for name, one in SETTINGS.items() if cls in [above.__name__ for above in inspect.getmro(one)]]


def leaves() -> Iterator[tuple[str, str]]:
    for name, cls in SETTINGS.items():
        yield from ((name, item.name) for item in dataclasses.fields(cls))


FILES = sorted(PACKAGE.rglob("*.py"))
READ = [path for path in FILES if str(path.relative_to(PACKAGE)) not in DECLARE]
DECLARED = [path for path in FILES if path not in READ]


def test_every_setting_is_read() -> None:
    reads = reads_of(parsed(READ), parsed(DECLARED))
    dead = sorted(".".join(leaf) for leaf in leaves() if leaf not in reads and leaf not in EXCEPTIONS)
    assert not dead, f"no part of the program reads {', '.join(dead)} (or only from an object whose class nothing annotates)"


def test_no_exception_is_stale() -> None:
    reads = reads_of(parsed(READ), parsed(DECLARED))
    assert set(EXCEPTIONS) <= set(leaves()) - reads


def test_a_read_counts_for_the_class_it_is_read_from_alone() -> None:
    source = """
def build(objective: ObjectiveConfig, config: "RunConfig") -> None:
    evaluation, seed = config.evaluation, config.seed
    for name, stage in config.stages.items():
        print(stage.lr, evaluation.points, [one.path for one in config.data.manifests.values()])
    config.data.rows = 3
    objective.masking.law
    other.noise_scale
"""
    found = reads_of([ast.parse(source)], parsed(DECLARED))
    assert {("StageConfig", "lr"), ("EvaluationConfig", "points"), ("ManifestConfig", "path"), ("MaskingConfig", "law")} <= found
    assert ("RunConfig", "seed") in found
    assert not found & {("DataConfig", "rows"), ("ObjectiveConfig", "noise_scale"), ("StageConfig", "tokens")}

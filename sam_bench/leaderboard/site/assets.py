"""Scripts and styles of the pages: DataTables and Vega-Lite from the packages that ship them, and our own."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sam_bench.errors import SamBenchError

MISSING = "no pages are written: they need DataTables and Vega-Lite; pip install 'sam-bench[board]'"
_OWN = Path(__file__).parent / "templates"


def available() -> bool:
    """Whether the packages that ship the scripts are installed."""
    return find_spec("itables") is not None and find_spec("vl_convert") is not None


@cache
def assets() -> dict[str, str]:
    """Content of each file that the pages share, by file name."""
    script, style = _datatables()
    own = {name: (_OWN / name).read_text(encoding="utf-8") for name in ("board.css", "board.js")}
    return {"datatables.js": script, "datatables.css": style, "vega.js": _vega(), **own}


def _datatables() -> tuple[str, str]:
    import itables

    folder = Path(itables.__file__).parent / "html"
    style, module = ((folder / f"dt_bundle.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    # A browser loads no module from file://. So the module's exports become properties of `window.datatables`.
    exports = re.findall(r"\bexport\{([^}]*)\}", module)
    if len(exports) != 1:
        raise SamBenchError(f"itables {itables.__version__} ships DataTables in a form that is not known here")
    names = (each.split(" as ") for each in exports[0].split(","))
    properties = ",".join(f'"{name}":{local}' for local, name in names)
    body = module.replace(f"export{{{exports[0]}}}", f"window.datatables={{{properties}}}")
    return f"(()=>{{{body}\n}})();\n", style


def _vega() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(()=>{{{bundle}\n}})();\n"

# pyright's own stub types every item of a file as Group | Dataset | Datatype, which no code can
# index without a cast. For type checking only; never imported.
from typing import Any

def __getattr__(name: str) -> Any: ...

"""What is written can be read: all documents leave out what they do not know."""

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from types import NoneType

from pydantic import BaseModel

from kyb_backup_pipeline import engine
from kyb_backup_pipeline.engine.digest import TableContent
from kyb_backup_pipeline.engine.manifest import write_json


def models(of: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for model in of.__subclasses__():
        yield model
        yield from models(model)


def test_what_a_document_leaves_out_is_no_error_to_who_reads_it() -> None:
    for module in pkgutil.iter_modules(engine.__path__):
        importlib.import_module(f"{engine.__name__}.{module.name}")
    ours = {model for model in models() if model.__module__.startswith(engine.__name__)}
    assert len(ours) > 60
    unreadable = [
        f"{model.__name__}.{name}"
        for model in ours
        for name, field in model.model_fields.items()
        if field.is_required() and NoneType in typing.get_args(field.annotation)
    ]
    assert unreadable == []


def test_a_table_whose_rows_are_too_long_to_be_hashed_is_in_the_evidence_all_the_same() -> None:
    content = TableContent(rows=3, digest=None)
    assert TableContent.model_validate_json(write_json(content)) == content

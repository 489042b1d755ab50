"""The tables that a model's modules name, before it is known what their rows hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from downpour.accessor import EmbeddingAccessor
from downpour.errors import PlanError
from downpour.nn import sparse_embeddings
from downpour.plan.specs import FeatureSpec, SparseTableSpec
from downpour.rules import SGD

if TYPE_CHECKING:
    import torch

    from downpour.nn import SparseEmbedding


def declared_tables(model: torch.nn.Module, seed: int) -> dict[str, SparseTableSpec]:
    """Every table that a module names, with the features of all its modules together.

    Their accessors stand for what the modules say alone, the rule is none yet: discovery reads
    rows by them, as wide as the model sees them. Raises PlanError where two modules disagree.
    """
    tables: dict[str, SparseTableSpec] = {}
    for module in sparse_embeddings(model):
        spec = _table_of(module, seed)
        tables[spec.name] = _joined(tables[spec.name], spec) if spec.name in tables else spec
    return tables


def _table_of(module: SparseEmbedding, seed: int) -> SparseTableSpec:
    return SparseTableSpec(
        id=-1,
        name=str(module.table),
        accessor=EmbeddingAccessor(
            dim=module.dim,
            rule=SGD(1.0),
            init=module.init,
            bounds=module.bounds,
            dtype=module.dtype,
        ),
        features=tuple(FeatureSpec(name=f, space=module.space_of(f)) for f in module.features),
        padding_key=module.padding_key,
        seed=seed,
        use_cvm=module.use_cvm,
    )


def _joined(first: SparseTableSpec, other: SparseTableSpec) -> SparseTableSpec:
    """One table for two modules. Raises PlanError where they do not agree."""
    if _settings(first) != _settings(other):
        raise PlanError(
            f"two SparseEmbeddings share table {first.name!r} and differ: {_settings(first)} and "
            f"{_settings(other)}"
        )
    features = {feature.name: feature for feature in first.features}
    for feature in other.features:
        if features.setdefault(feature.name, feature) != feature:
            raise PlanError(
                f"feature {feature.name!r} reads table {first.name!r} with the id spaces "
                f"{features[feature.name].space!r} and {feature.space!r}; give it one"
            )
    return replace(first, features=tuple(features.values()))


def _settings(spec: SparseTableSpec) -> str:
    """What two modules of one table must say alike."""
    accessor = spec.accessor
    assert isinstance(accessor, EmbeddingAccessor)
    return (
        f"dim={accessor.dim}, init={accessor.init}, bounds={accessor.bounds}, "
        f"dtype={accessor.dtype}, padding_key={spec.padding_key}, use_cvm={spec.use_cvm}"
    )

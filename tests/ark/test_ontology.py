from __future__ import annotations

import pytest

from ark.ontology import Ontology, fold
from ark.types import ConfigError, TaskSpec

CHEST = Ontology.checked(
    {
        "Pleural Effusion": {"synonyms": ["Effusion", "vindr/findings=PE"]},
        "Pulmonary Embolism": {"synonyms": ["PE"]},
        "Abnormality": {},
        "Lung Opacity": {"parents": ["Abnormality"]},
        "Pneumonia": {"parents": ["Lung Opacity"]},
        "Consolidation": {"parents": ["Lung Opacity"]},
    }
)


def task(key: str, *classes: str) -> TaskSpec:
    return TaskSpec(*key.split("/"), "multilabel", classes)


NIH = task("nih/findings", "Effusion", "Pneumonia", "Consolidation", "Hernia")
VINDR = task("vindr/findings", "PE", "lung_opacity", "hernia", "Tuberculosis")


def test_synonyms_local_names_and_spelling_meet_in_one_concept() -> None:
    assert CHEST.concept("nih/findings", "effusion") == "Pleural Effusion"
    assert CHEST.concept("vindr/findings", "PE") == "Pleural Effusion"
    assert CHEST.concept("ct/findings", "PE") == "Pulmonary Embolism"
    assert fold("Pleural_Thickening ") == fold("pleural-thickening") == "pleural thickening"


def test_a_class_is_scored_by_its_equal_or_by_all_that_imply_it() -> None:
    assert CHEST.sources(target=VINDR, source=NIH) == {
        "PE": ["Effusion"],
        "lung_opacity": ["Pneumonia", "Consolidation"],
        "hernia": ["Hernia"],  # no concept: the same name means the same
    }
    # a parent says nothing of its children
    assert CHEST.sources(target=NIH, source=VINDR) == {"Effusion": ["PE"], "Hernia": ["hernia"]}
    both = task("a/b", "Lung Opacity", "Pneumonia")
    assert CHEST.sources(target=both, source=both)["Lung Opacity"] == ["Lung Opacity"]


def test_implications_reach_over_generations() -> None:
    mixed = task("a/b", "Abnormality", "Pneumonia", "Hernia")
    assert CHEST.implications(mixed) == [(1, 0)]
    assert CHEST.implications(NIH) == []


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ({"A": {"synonyms": ["b"]}, "B": {}}, "'B' names both 'A' and 'B'.*dataset/task=class"),
        ({"A": {"parents": ["C"]}}, "'A': parent 'C' is no concept; add it"),
        ({"A": {"parents": ["B"]}, "B": {"parents": ["A"]}}, "'A' is its own ancestor"),
        ({"A": {"parent": ["B"]}}, "'A'.*expected the keys synonyms and parents"),
        ({"A": {"parents": "B"}}, "'A': parents is 'B'; expected a list"),
    ],
)
def test_a_wrong_ontology_says_where_and_what(concepts, message, tmp_path) -> None:
    from omegaconf import OmegaConf

    path = tmp_path / "chest.yaml"
    OmegaConf.save(OmegaConf.create(concepts), path)
    with pytest.raises(ConfigError, match=f"chest.yaml.*{message}"):
        Ontology.load(path)


def test_no_file_and_no_yaml(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file"):
        Ontology.load(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"y\.yaml"):
        Ontology.load(tmp_path / "y.yaml")
    (tmp_path / "z.yaml").write_text("- a")
    with pytest.raises(ConfigError, match=r"z\.yaml: expected concepts"):
        Ontology.load(tmp_path / "z.yaml")

"""Scores (evaluate.py), against counts made by hand and by loops."""

import torch

from evaluate import retrieval_chance, retrieval_metrics


def test_retrieval_counts_the_rank_of_the_match():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]])  # ranks 1, 2, 3
    scores = retrieval_metrics(similarity)
    assert scores["R@1"] == 1 / 3
    assert scores["R@5"] == 1
    assert scores["MedR"] == 2
    assert scores["N"] == 3


def test_retrieval_equals_a_loop():
    similarity = torch.randn(57, 57)
    ranks = [1 + sum(float(row[j]) > float(row[i]) for j in range(57)) for i, row in enumerate(similarity)]
    scores = retrieval_metrics(similarity)
    for k in (1, 5, 10):
        assert abs(scores[f"R@{k}"] - sum(r <= k for r in ranks) / 57) < 1e-12
    assert scores["MedR"] == sorted(ranks)[28]


def test_ties_rank_last_so_a_collapsed_model_scores_nothing():
    scores = retrieval_metrics(torch.ones(20, 20))
    assert scores["R@10"] == 0
    assert scores["MedR"] == 20


def test_a_score_that_is_not_a_number_ranks_last():
    similarity = torch.eye(12)
    similarity[3, 3] = float("nan")
    similarity[4, 7] = float("nan")
    scores = retrieval_metrics(similarity)
    assert abs(scores["R@1"] - 10 / 12) < 1e-12


def test_an_even_pool_has_its_median_between_two_ranks():
    similarity = torch.eye(4)
    similarity[0, 1] = similarity[1, 2] = 2.0
    assert retrieval_metrics(similarity)["MedR"] == 1.5


def test_chance_is_what_random_scores_give():
    chance, scores = retrieval_chance(200), [retrieval_metrics(torch.randn(200, 200)) for _ in range(60)]
    for k in ("R@1", "R@5", "R@10"):
        assert abs(sum(s[k] for s in scores) / 60 - chance[k]) < 0.25 * chance[k]
    assert abs(sum(s["MedR"] for s in scores) / 60 - chance["MedR"]) < 5


def test_an_empty_pool_has_no_chance_and_no_score():
    assert retrieval_metrics(torch.zeros(0, 0))["N"] == 0
    assert retrieval_chance(0) == {}

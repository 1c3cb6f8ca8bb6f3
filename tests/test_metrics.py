"""Metrics (metrics.py), against scikit-learn, and against counts by hand and by literal loops."""

import math
from statistics import NormalDist, mean

import pytest
import torch

from evaluate import classification_metrics, d_prime, multilabel_metrics, retrieval_chance, retrieval_metrics


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


# one class a sample

def test_top_1_and_top_5_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, targets = torch.randn(301, 12), torch.randint(12, (301,))
    ours = classification_metrics(scores, targets)
    for k in (1, 5):
        assert ours[f"top-{k}"] == pytest.approx(sklearn.top_k_accuracy_score(targets, scores, k=k, labels=range(12)))


def test_the_confusion_matrix_recall_and_precision_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, targets = torch.randn(301, 12), torch.randint(12, (301,))
    ours, named = classification_metrics(scores, targets, per_class=True), scores.argmax(1)
    assert ours["confusion"] == sklearn.confusion_matrix(targets, named).tolist()
    precision, recall, _, samples = sklearn.precision_recall_fscore_support(targets, named)
    assert ours["samples"] == samples.tolist()
    assert ours["recall"] == pytest.approx(recall.tolist())
    assert ours["precision"] == pytest.approx(precision.tolist())


def test_a_tie_counts_as_wrong_in_accuracy_and_in_the_confusion_matrix():
    scores, targets = torch.randint(3, (400, 7)).float(), torch.randint(7, (400,))
    right = sum(all(row[t] > row[k] for k in range(7) if k != t) for row, t in zip(scores, targets, strict=True))
    ours = classification_metrics(scores, targets, per_class=True)
    assert 0 < right < 400
    assert ours["top-1"] == right / 400
    assert sum(ours["confusion"][k][k] for k in range(7)) == right
    assert sum(map(sum, ours["confusion"])) == 400


def test_a_model_that_says_the_same_of_all_classes_is_never_right():
    assert classification_metrics(torch.zeros(50, 10), torch.randint(10, (50,)))["top-5"] == 0


def test_a_score_that_is_not_a_number_is_never_right():
    scores, nan = torch.eye(4).repeat(2, 1), float("nan")
    scores[0] = nan
    scores[1, 2] = nan
    ours = classification_metrics(scores, torch.arange(4).repeat(2), per_class=True)
    assert ours["top-1"] == 6 / 8
    assert [ours["confusion"][k][k] for k in range(4)] == [1, 1, 2, 2]


def test_classes_without_a_sample_have_no_recall():
    ours = classification_metrics(torch.eye(3)[:2], torch.tensor([0, 1]), per_class=True)
    assert ours["recall"] == [1, 1, None]
    assert ours["precision"] == [1, 1, None]


def test_chance_is_one_of_the_classes_and_naming_the_largest_is_beside_it():
    chance = classification_metrics(torch.randn(10, 8), torch.tensor([3] * 7 + [1, 2, 4]))["chance"]
    assert chance == {"top-1": 1 / 8, "top-5": 5 / 8, "most frequent": 0.7}
    assert classification_metrics(torch.randn(4, 3), torch.arange(4) % 3)["chance"]["top-5"] == 1


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_class_that_the_model_lacks_is_an_error(wrong):
    with pytest.raises(ValueError, match="the model has 0 to 4"):
        classification_metrics(torch.randn(2, 5), torch.tensor([0, wrong]))


def test_no_sample_gives_zeros():
    ours = classification_metrics(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), per_class=True)
    assert ours["N"] == ours["top-1"] == ours["top-5"] == 0


# several classes a sample

@pytest.fixture(params=["no ties", "many ties"])
def clips(request):
    """Scores (203, 9) and targets that they have something to do with"""
    targets = torch.rand(203, 9) < torch.linspace(0.02, 0.6, 9)
    targets[0] = True
    scores = torch.randn(203, 9) + targets
    return (scores.round() if request.param == "many ties" else scores), targets


def test_mean_average_precision_and_area_equal_scikit_learn(clips):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, targets = clips
    ours = multilabel_metrics(scores, targets, per_class=True)
    assert ours["mAP"] == pytest.approx(sklearn.average_precision_score(targets, scores, average="macro"), abs=1e-12)
    assert ours["AUC"] == pytest.approx(sklearn.roc_auc_score(targets, scores, average="macro"), abs=1e-12)
    assert ours["AP"] == pytest.approx(sklearn.average_precision_score(targets, scores, average=None).tolist(), abs=1e-12)


def test_average_precision_and_area_equal_literal_loops(clips):
    scores, targets = clips
    ours = multilabel_metrics(scores, targets, per_class=True)
    for k in range(9):
        positive, negative = scores[targets[:, k], k].tolist(), scores[~targets[:, k], k].tolist()
        pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
        assert ours["AUC of each"][k] == pytest.approx(mean(pairs), abs=1e-12)
        precision, recall = 0.0, 0.0
        for threshold in sorted(set(scores[:, k].tolist()), reverse=True):
            hits, misses = sum(p >= threshold for p in positive), sum(n >= threshold for n in negative)
            precision += (hits / len(positive) - recall) * hits / (hits + misses)
            recall = hits / len(positive)
        assert ours["AP"][k] == pytest.approx(precision, abs=1e-12)


def test_d_prime_is_the_mean_of_each_class_and_the_other_definition_is_named_beside_it(clips):
    ours, z = multilabel_metrics(*clips, per_class=True), NormalDist().inv_cdf
    assert ours["d'"] == pytest.approx(mean(math.sqrt(2) * z(area) for area in ours["AUC of each"]))
    assert ours["d' of AUC"] == pytest.approx(math.sqrt(2) * z(mean(ours["AUC of each"])))


def test_the_two_d_primes_give_both_figures_of_table_2():
    # Printed of VATT: AUC 97.1, d' 2.895; 2.681 is what the six other rows' definition would give.
    assert d_prime(0.971, 10**9) == pytest.approx(2.681, abs=5e-4)


def test_a_perfect_class_has_a_finite_d_prime():
    ours = multilabel_metrics(torch.tensor([[2.0], [1.0], [0.0]]), torch.tensor([[1], [0], [0]]))
    assert ours["mAP"] == ours["AUC"] == 1
    assert ours["d'"] == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(0.75))


def test_classes_without_positives_or_without_negatives_are_left_out_and_named(clips):
    scores, targets = clips
    whole = multilabel_metrics(scores, targets, per_class=True)
    targets = targets.clone()
    targets[:, 2], targets[:, 5] = False, True
    ours = multilabel_metrics(scores, targets, per_class=True)
    assert ours["left_out"] == [2, 5]
    for name, each in (("mAP", "AP"), ("AUC", "AUC of each")):
        assert ours[each][2] is ours[each][5] is None
        assert ours[name] == pytest.approx(mean(x for k, x in enumerate(whole[each]) if k not in (2, 5)))


@pytest.mark.parametrize(("n", "share"), [(55, 0.03), (300, 0.3), (3, 0.5)])
def test_chance_of_map_is_what_random_scores_give_these_files(n, share):
    targets = torch.rand(n, 5) < share
    targets[0], targets[1] = True, False
    random = [multilabel_metrics(torch.randn(n, 5), targets) for _ in range(400)]
    scores = torch.tensor([found["mAP"] for found in random])
    assert scores.mean() == pytest.approx(random[0]["chance"]["mAP"], abs=4 * scores.std().item() / 20)
    assert n > 100 or random[0]["chance"]["mAP"] > 1.5 * targets.float().mean() or n == 3


def test_scores_that_say_nothing_give_chance():
    targets = torch.rand(300, 5) < 0.3
    ours = multilabel_metrics(torch.zeros(300, 5), targets)
    assert ours["mAP"] == pytest.approx(targets.double().mean().item())
    assert ours["AUC"] == ours["chance"]["AUC"] == 0.5
    assert ours["d'"] == ours["chance"]["d'"] == 0


def test_a_score_that_is_not_a_number_ranks_where_it_does_most_harm(clips):
    scores, targets = clips
    broken, worst = scores.clone(), scores.clone()
    broken[::7] = float("nan")
    worst[::7] = torch.where(targets[::7], -1e9, 1e9)
    assert multilabel_metrics(broken, targets) == multilabel_metrics(worst, targets)


def test_nothing_to_score_gives_zeros():
    ours = multilabel_metrics(torch.zeros(0, 3), torch.zeros(0, 3))
    assert ours["N"] == ours["mAP"] == ours["AUC"] == 0
    assert ours["left_out"] == [0, 1, 2]

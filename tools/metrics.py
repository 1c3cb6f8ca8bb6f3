"""Scores, each a small function that says what it counts (Sections 4.2.1 to 4.2.4).

    N samples or queries   C classes   scores (N, C) logits, probabilities or any other order   similarity (N, N)

All are fractions of 1. Where scores are equal the right answer ranks last, so that a model which says the same of everything
gets what it deserves; a score that is not a number ranks where it does most harm.
"""

import torch

KS = (1, 5, 10)  # of R@k


def retrieval_metrics(similarity: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 as fractions, and the median rank (Section 4.2.4).

    similarity (N, N): rows are queries, columns the pool, the match stands on the diagonal. The best rank is 1. Ties rank
    last, so a model that gives every pair the same score gets 0; a score that is not a number ranks last too.
    """
    n = len(similarity)
    if n == 0:
        return {**{f"R@{k}": 0.0 for k in KS}, "MedR": 0.0, "N": 0}
    rank = ranks(similarity, torch.arange(n)).double()
    scores = {f"R@{k}": ((rank <= k).double().mean()).item() for k in KS}
    return {**scores, "MedR": rank.quantile(0.5).item(), "N": n}


def retrieval_chance(n: int) -> dict[str, float]:
    """What a random order of a pool of n gives: R@k = k/n, the median rank is (n + 1)/2"""
    return {**{f"R@{k}": min(1.0, k / n) for k in KS}, "MedR": (n + 1) / 2} if n else {}


def ranks(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The rank of the right column in each row, from 1: one more than those that are not below it.  (N, C), (N,) -> (N,)"""
    # Ours: ties rank last (official: an unstable sort, so that ties fall as they may).
    match = scores.gather(1, right.to(scores.device)[:, None])
    return (~(scores < match)).sum(1)


def classification_metrics(scores: torch.Tensor, targets: torch.Tensor, per_class: bool = False) -> dict:
    """Top-1 and top-5 accuracy (Section 4.2.1): the share of samples whose class is among the k highest of their row.

    scores (N, C), targets (N,) ints in 0 .. C - 1 -> {"top-1", "top-5", "N", "chance": {"top-1", "top-5", "most frequent"}},
    where "most frequent" is the top-1 of one who always names the class that is most frequent here; with `per_class` also
    "samples", "recall" and "precision" (lists of C; None where there is nothing to divide by) and "confusion" (C lists of C
    counts; rows are the true classes, columns the highest scores). ValueError for a target outside the classes.
    """
    n, c = scores.shape
    if n and not 0 <= int(targets.min()) <= int(targets.max()) < c:
        raise ValueError(f"classes {int(targets.min())} to {int(targets.max())}, but the model has 0 to {c - 1}")
    scores, targets = scores.double().cpu(), targets.long().cpu()
    rank, samples = ranks(scores, targets), torch.bincount(targets, minlength=c)
    top = lambda k: (rank <= k).double().mean().item() if n else 0.0
    chance = {"top-1": 1 / c, "top-5": min(1.0, 5 / c), "most frequent": samples.max().item() / max(n, 1)}
    metrics = {"top-1": top(1), "top-5": top(5), "N": n, "chance": chance}
    if per_class:
        others = scores.scatter(1, targets[:, None], -torch.inf).nan_to_num(torch.inf, torch.inf, -torch.inf)
        named = torch.where(rank == 1, targets, others.argmax(1)) if n else targets
        confusion = torch.bincount(targets * c + named, minlength=c * c).view(c, c)
        share = lambda total: [confusion[k, k].item() / int(total[k]) if total[k] else None for k in range(c)]
        metrics |= {"samples": samples.tolist(), "recall": share(samples), "precision": share(confusion.sum(0)),
                    "confusion": confusion.tolist()}
    return metrics


def multilabel_metrics(scores: torch.Tensor, targets: torch.Tensor, per_class: bool = False) -> dict:
    """Mean average precision, mean area under the ROC curve, and d' (Section 4.2.2), each the plain mean over classes.

    scores (N, C), targets (N, C) 0 or 1. Average precision is the sum over thresholds of (R_n - R_n-1) P_n, the area is the
    share of pairs of a positive and a negative in which the positive is higher, and a tie is half a pair: both as in
    scikit-learn. d' = sqrt(2) Phi^-1(area): "d'" is the mean of each class's, as in the paper's Table 2; "d' of AUC" is that of
    the mean area, as others report it, and is smaller. Classes without a positive or without a negative sample are in none of
    the means: "left_out" lists their numbers. "chance": mAP is the mean share of positives, AUC 1/2, d' 0. With `per_class`
    also "samples", "AP" and "AUC of each" (lists of C, None for classes left out).
    """
    scores, targets = scores.double().cpu(), targets.bool().cpu()
    n, c = scores.shape
    positives = targets.sum(0)
    kept = [k for k in range(c) if 0 < positives[k] < n]
    precision, area = [None] * c, [None] * c
    for k in kept:
        precision[k], area[k] = areas(scores[:, k], targets[:, k])
    mean = lambda x: sum(x[k] for k in kept) / len(kept) if kept else 0.0
    pairs = positives * (n - positives)
    primes = [d_prime(area[k], int(pairs[k])) if area[k] is not None else None for k in range(c)]
    metrics = {"mAP": mean(precision), "AUC": mean(area), "d'": mean(primes),
               "d' of AUC": d_prime(mean(area), int(pairs.sum())) if kept else 0.0, "N": n,
               "left_out": [k for k in range(c) if area[k] is None],
               "chance": {"mAP": mean((positives / max(n, 1)).tolist()), "AUC": 0.5, "d'": 0.0}}
    if per_class:
        metrics |= {"samples": positives.tolist(), "AP": precision, "AUC of each": area}
    return metrics


def areas(scores: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """(average precision, area under the ROC curve) of one class with positives and negatives; (N,), (N,) bool"""
    scores = torch.where(scores.isnan(), torch.where(targets, -torch.inf, torch.inf), scores)
    order = scores.argsort(descending=True, stable=True)
    scores, right = scores[order], targets[order].double()
    last = torch.ones(len(scores), dtype=torch.bool)        # of those with one score: all pass a threshold, or none
    last[:-1] = scores[1:] != scores[:-1]
    zero = torch.zeros(1, dtype=torch.float64)
    hits = torch.cat([zero, right.cumsum(0)[last]])         # positives at or above each threshold
    misses = torch.cat([zero, (1 - right).cumsum(0)[last]])
    precision = hits.diff() @ (hits[1:] / (hits[1:] + misses[1:])) / hits[-1]
    area = misses.diff() @ (hits[1:] + hits[:-1]) / 2 / (hits[-1] * misses[-1])
    return precision.item(), area.item()


def d_prime(area: float, pairs: int) -> float:
    """sqrt(2) Phi^-1(area under the ROC curve of so many pairs of a positive and a negative)"""
    # Ours: an area of 0 or 1 counts as half a pair away from it (official: an infinite d', and then their mean too).
    area = min(max(area, 0.5 / pairs), 1 - 0.5 / pairs)
    return 2**0.5 * torch.special.ndtri(torch.tensor(area, dtype=torch.float64)).item()

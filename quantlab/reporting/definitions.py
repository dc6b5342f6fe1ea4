"""What the words of the page's tables mean, as the page says it."""

DEFINITIONS = {
    "Difference": "the metric less FP32's on the same examples, in points of a percent; a loss is negative. "
    "Of a perplexity, the ratio to FP32's: above 1 is a loss",
    "95 % interval": "paired over examples: Agresti and Min's for accuracy, of bootstrap errors for "
    "other metrics, of t of the windows' log-likelihoods for perplexities. "
    "Those of the table, and those of the matrix, hold all at once with 95 % probability (Bonferroni)",
    "p (corrected)": "exact McNemar test for accuracy, a permutation test of paired swaps otherwise, "
    "or that of the interval where it is larger; times the number of the page's trials, in the matrix of "
    "its pairs (Bonferroni)",
    "Verdict": "better or worse where the corrected p is below 5 %: there the interval beside "
    "it leaves out 0; else the examples that would show half a point, of a perplexity half a percent, with "
    "80 % power",
    "Chosen and measured": "what to deploy and what failed worst are chosen on one part of the rows "
    "and measured on the held-out part (evaluation.holdout), as the best of many looks better on the rows "
    "that chose it than it is",
    "Simulated": "FP32 arithmetic on quantized values: answers as of integers up to rounding, "
    "its time is not",
    "Kurtosis": "Pearson's m4 / m2² of all elements of a tensor, padding excluded; 3 for a Gaussian",
    "Top 1 % of channels": "share of the sum of squares in the hundredth of channels that hold most",
    "Top 1 % of elements": "the same of elements, the definition of arXiv 2603.04308",
    "SQNR": "10 log10(sum x² / sum (x − x̂)²), in dB",
}

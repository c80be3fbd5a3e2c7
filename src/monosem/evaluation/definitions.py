"""What each metric is: the one table that the report, the docs and `monosem compare` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    """A metric, by its key in `DEFINITIONS`."""

    label: str
    """A few words, as a table has them (28 characters at most)."""
    formula: str
    """x: activation (or what is to be predicted), y: reconstruction, f: codes; means are over rows unless said."""
    unit: str
    """"" for a plain number."""
    direction: Literal["up", "down", "none"]
    """Where better is."""
    source: str = ""
    """Paper or library, where it is not common knowledge."""
    differs: str = ""
    """How it differs from SAEBench's or SAELens's number of the same name."""


RECONSTRUCTION = {
    "l0": Definition("L0, latents on per token", "mean #{f > 0}", "latents", "none"),
    "fvu": Definition(
        "FVU, variance unexplained",
        "sum |x - y|^2 / sum |x - mean(x)|^2, sums and mean over the whole data set",
        "share",
        "down",
        differs="SAEBench and SAELens have its complement, explained variance",
    ),
    "explained_variance": Definition(
        "explained variance",
        "1 - FVU",
        "share",
        "up",
        differs="SAEBench 0.6.0 does not subtract the mean and divides by a scalar, so that it can exceed 1; its "
        "legacy number is a mean of ratios by token, against the mean of a batch",
    ),
    "cosine": Definition("cosine with x", "mean x.y / (|x| |y|), rows of zeros left out", "", "up"),
    "norm_ratio": Definition("norm ratio to x", "mean |y| / |x|, rows of zeros left out", "", "none"),
    "mse": Definition(
        "MSE per dimension",
        "mean |x - y|^2 / d",
        "squared units of x",
        "down",
        differs="SAEBench 0.6.0 divides by the tokens of a batch too, and not by d",
    ),
    "relative_bias": Definition(
        "relative bias, 1: unshrunk",
        "sum |y|^2 / sum x.y, below 1 where reconstructions are too short",
        "",
        "none",
        "Rajamanoharan et al., Improving dictionary learning with gated SAEs, 2024",
        "SAEBench's relative_reconstruction_bias is a mean of the ratios of batches",
    ),
    "l0_mode": Definition("L0, where it peaks", "the most frequent #{f > 0}", "latents", "none"),
    "l0_beginning": Definition(
        "L0 at beginnings of texts",
        "mean #{f > 0} of the first 4 tokens of documents and positions of contexts",
        "latents",
        "none",
    ),
    "l0_later": Definition("L0 without the beginnings", "mean #{f > 0} of all others", "latents", "none"),
    "error_linear": Definition(
        "error, share linear in x",
        "R^2 of least squares from x to x - y, fitted on one half of the documents, measured on the other, both ways",
        "share",
        "down",
        "Engels et al., Decomposing the dark matter of sparse autoencoders, 2024",
    ),
    "error_norm_linear": Definition(
        "norm of the error, likewise",
        "R^2 of least squares from x to |x - y|, likewise",
        "share",
        "none",
        "Engels et al., 2024",
    ),
}

BEHAVIOUR = {
    "ce": Definition("cross-entropy, nats", "mean -log p(next token), y in place of x", "nats", "down"),
    "loss_recovered_mean": Definition(
        "loss recovered (mean)",
        "(loss at the mean - loss at y) / (loss at the mean - clean loss)",
        "share",
        "up",
        differs="SAEBench has the ablation to zero alone",
    ),
    "loss_recovered_zero": Definition(
        "loss recovered (zero)",
        "(loss at zero - loss at y) / (loss at zero - clean loss)",
        "share",
        "up",
        differs="SAEBench's ce_loss_score",
    ),
    "kl": Definition(
        "KL from clean, nats",
        "mean sum p (log p - log q), p clean, q with y in place of x",
        "nats",
        "down",
        differs="SAEBench takes the log of a softmax: NaN where it underflows, written as -1",
    ),
    "ce_with_error": Definition(
        "cross-entropy, error put back",
        "mean -log p(next token), y + (x - y) in place of x: the clean loss, but for rounding",
        "nats",
        "none",
    ),
    "kl_with_error": Definition("KL, error put back", "likewise: 0, but for rounding", "nats", "down"),
    "kl_random": Definition(
        "KL of a random error",
        "KL with x + |x - y| u in place of x, u a random direction",
        "nats",
        "none",
        "Gurnee, SAE reconstruction errors are (empirically) pathological, 2024",
    ),
    "kl_random_cosine": Definition(
        "KL of a random one, same angle",
        "likewise, of those with the norm of y and its cosine with x",
        "nats",
        "none",
        "Gurnee, 2024",
    ),
    "kl_norm_corrected": Definition(
        "KL at the norm of x", "KL with y |x| / |y| in place of x", "nats", "down", "Gurnee, 2024"
    ),
    "kl_over_random": Definition(
        "KL over a random error's", "KL at y / KL of a random error", "", "down", "Gurnee, 2024"
    ),
    "kl_over_random_cosine": Definition(
        "KL over that at the same angle", "KL at y / KL of a random error, same angle", "", "down", "Gurnee, 2024"
    ),
    "kl_beyond": Definition(
        "KL past the training's context", "KL at positions that no context of the training had", "nats", "down"
    ),
    "kl_beyond_over_within": Definition("  over KL within it", "KL at those positions / KL at all others", "", "down"),
    "last_word": Definition(
        "last word guessed",
        "share of passages all tokens of whose last word are the likeliest ones, y in place of x",
        "share",
        "up",
        "Paperno et al., The LAMBADA dataset, 2016",
    ),
    "accuracy": Definition("accuracy", "share of right answers, y in place of x", "share", "up"),
    "agreement": Definition("same answer as clean", "share of answers that are those of the model", "share", "up"),
}

DICTIONARY = {
    "dead_share": Definition(
        "share of dead latents",
        "#{latents that never fired} / #latents",
        "share",
        "down",
        differs="SAEBench's frac_alive is its complement; both fall with the tokens read: see the curve by budget",
    ),
    "firing_rate_median": Definition("median firing rate, alive", "median of the rates above 0", "share", "none"),
    "often_share": Definition(
        "on at > 1 % of tokens", "#{rate > 0.01} / #latents", "share", "none", "SAEBench, freq_over_1_percent"
    ),
    "often_firings": Definition(
        "  their share of firings",
        "sum of the rates above 0.01 / sum of all",
        "share",
        "none",
        "SAEBench, normalized_freq_over_1_percent",
    ),
    "dense_share": Definition(
        "dense: on at > 10 %", "#{rate > 0.1} / #latents", "share", "down", "SAEBench, freq_over_10_percent"
    ),
    "dense_firings": Definition(
        "  their share of firings",
        "sum of the rates above 0.1 / sum of all",
        "share",
        "down",
        "SAEBench, normalized_freq_over_10_percent",
    ),
    "ultra_rare_share": Definition(
        "ultra-rare, below 1 in 100k",
        "#{rate < 1e-5, never among them} / #latents; on fewer than 100,000 rows those that never fired",
        "share",
        "down",
        "Bricken et al. 2023",
    ),
    "ultra_rare_encoder_cosine": Definition(
        "  one way? encoder",
        "mean cosine of any two of them, encoder rows; 1: all read one direction",
        "cosine",
        "none",
        "Bricken et al. 2023",
    ),
    "ultra_rare_decoder_cosine": Definition(
        "  one way? decoder", "likewise, decoder rows", "cosine", "none", "Bricken et al. 2023"
    ),
    "decoder_max_cosine": Definition(
        "nearest other, decoder",
        "mean over latents of the largest cosine with another decoder row, in units of the model",
        "cosine",
        "none",
        "SAEBench, average_max_decoder_cosine_sim",
        "the same, but that rows are taken out of the input transform: other angles where it whitens",
    ),
    "encoder_max_cosine": Definition(
        "nearest other, encoder",
        "likewise, encoder rows",
        "cosine",
        "none",
        "SAEBench, average_max_encoder_cosine_sim",
        "likewise",
    ),
    "encoder_decoder_cosine": Definition(
        "encoder with its decoder",
        "mean over latents of the cosine of encoder row and decoder row; only where input and target are one",
        "cosine",
        "none",
        "SAEBench, SAELens: encoder_decoder_cosine_sim",
        "the mean of theirs by latent",
    ),
    "cross_max_cosine": Definition(
        "nearest in other SAEs",
        "mean over latents of the largest cosine with a decoder row of each other SAE evaluated beside it",
        "cosine",
        "none",
    ),
    "neuron_encoder_cosine": Definition(
        "nearest neuron, encoder",
        "mean over latents of the largest |cosine| of the encoder row with what a neuron of the layer reads (before "
        "the MLP) or writes (after it); at mlp_mid the largest |coordinate|",
        "cosine",
        "none",
    ),
    "neuron_decoder_cosine": Definition("nearest neuron, decoder", "likewise, of the decoder row", "cosine", "none"),
}

USEFULNESS = {
    "probe_auroc_1": Definition(
        "probe, 1 latent: AUROC",
        "P(score of a positive > score of another), logistic regression on 1 latent chosen on the training texts; mean "
        "over labels (each against all others); of the sources of the bundled held-out text",
        "share",
        "up",
        "Gurnee et al., Finding Neurons in a Haystack, 2023",
        differs="SAEBench has accuracy, chooses by the difference of means and draws negatives anew for every k",
    ),
    "probe_auroc_5": Definition(
        "probe, 5 latents: AUROC", "as probe_auroc_1, of 5 latents", "share", "up", "Gurnee et al., 2023"
    ),
    "probe_accuracy_5": Definition(
        "probe, 5 latents: accuracy",
        "mean of the shares of both sides that are told rightly, 5 latents; 0.5 is chance",
        "share",
        "up",
        "Gurnee et al., 2023",
        differs="SAEBench's sae_top_5_test_accuracy is plain accuracy on balanced texts",
    ),
    "probe_auroc_lost": Definition(
        "AUROC lost to all of x",
        "AUROC of a logistic regression on all of x - probe_auroc_5, paired",
        "share",
        "down",
    ),
    "absorption_full": Definition(
        "full absorption, letters",
        "share of test words, told rightly by a probe of their first letter, at which all latents of the letter are "
        "off and another one makes up 0.4 of x along the probe; mean over letters; by ms.absorption",
        "share",
        "down",
        "Chanin et al., A is for Absorption, 2024",
        differs="SAEBench decides splitting on test words and takes decoder rows to be of length 1; meaningless below "
        "about a billion parameters, low for random dictionaries, noisier than assumed (Chanin, 2026)",
    ),
    "absorption_fraction": Definition(
        "absorption fraction, letters",
        "mean share of x along a letter's probe that up to 3 other latents carry; 0 where they carry less than 0.4",
        "share",
        "down",
        "Karvonen et al., SAEBench, 2025",
        differs="as absorption_full",
    ),
    "split_latents": Definition(
        "latents a letter",
        "how many latents tell a first letter, another one as long as F1 grows by 0.03; mean over letters",
        "latents",
        "none",
        "Karvonen et al., SAEBench, 2025",
        differs="as absorption_full",
    ),
    "alarm_l0": Definition(
        "L0 at mixed words: AUROC",
        "P(mean L0 of a text with its words in random order > that of a text); 0.5: no alarm",
        "share",
        "none",
    ),
    "alarm_error": Definition(
        "error at mixed words: AUROC",
        "as alarm_l0, of mean |x - y|^2 / |x|^2",
        "share",
        "none",
    ),
    "alarm_norm": Definition(
        "norm at mixed words: AUROC", "as alarm_l0, of mean |x|: what needs no dictionary", "share", "none"
    ),
}

NEAREST = "over all latents, each against the true feature nearest to it; one that never fires counts 0"
SYNTH = "SynthSAEBench (2026)"
KARVONEN = "Karvonen et al. 2024"

GROUND_TRUTH = {
    "matched_cosine": Definition(
        "matched cosine",
        "mean |cos| of latents and true features, paired one to one for the largest sum",
        "",
        "up",
        SYNTH,
        "SAELens's mean_correlation_coefficient, the same number",
    ),
    "feature_cosine": Definition("cosine of features found", "mean over true features of the largest cosine", "", "up"),
    "latent_cosine": Definition("cosine of latents", "mean over latents of the largest cosine", "", "up"),
    "uniqueness": Definition(
        "uniqueness",
        "true features that are nearest to some latent / latents",
        "share",
        "up",
        SYNTH,
        "SAELens's feature_uniqueness, the same number",
    ),
    "f1": Definition(
        "F1 of firing", f"mean of 2 P R / (P + R), {NEAREST}", "", "up", SYNTH, "SAELens's f1_score, the same number"
    ),
    "precision": Definition(
        "precision of firing",
        f"mean of feature on and latent on / latent on, {NEAREST}",
        "share",
        "up",
        SYNTH,
        "SAELens's, the same number",
    ),
    "recall": Definition(
        "recall of firing",
        f"mean of feature on and latent on / feature on, {NEAREST}",
        "share",
        "up",
        SYNTH,
        "SAELens's, the same number",
    ),
    "matched_f1": Definition("F1 of matched pairs", "mean F1 over the pairs of the matched cosine", "", "up"),
    "absorption": Definition(
        "absorption of true parents",
        "mean over true parents of P(own latent silent | child on) - P(own latent silent | no child on)",
        "share",
        "down",
        differs="SAEBench has no truth: it takes a probe's direction for it, and asks which latents compensate",
    ),
    "absorbed_direction": Definition(
        "parent in child's latent",
        "mean b / a, where a child's own latent is nearest to a child + b parent",
        "",
        "down",
    ),
    "splitting": Definition(
        "splitting of true features",
        "latents beyond the first with a precision over 1/2 and the same nearest feature, mean over features",
        "latents",
        "down",
        differs="SAEBench counts the latents that a sparse probe gains from",
    ),
    "composition": Definition(
        "compositions",
        "share of latents that fire with a larger F1 for their two nearest features together than for either",
        "share",
        "down",
    ),
    "board_coverage": Definition(
        "board: coverage",
        "mean over squares and kinds (mine, theirs, empty) of the F1 of the best 1[f > t max f], t in 0, 0.1 ... 0.9; "
        "latent, t and max from training games",
        "F1",
        "up",
        KARVONEN,
    ),
    "board_coverage_stones": Definition("  of stones alone", "likewise, of mine and theirs", "F1", "up", KARVONEN),
    "board_reconstruction": Definition(
        "board: reconstruction",
        "mean over boards of the F1 of the OR of all 1[f > t max f] of precision 0.95 on at least 10 training rows; "
        "one t, from training games",
        "F1",
        "up",
        KARVONEN,
    ),
    "board_reconstruction_stones": Definition(
        "  of stones alone", "likewise, of mine and theirs", "F1", "up", KARVONEN
    ),
}

GROUPS = {
    "Reconstruction": RECONSTRUCTION,
    "Behaviour": BEHAVIOUR,
    "Dictionary": DICTIONARY,
    "Usefulness": USEFULNESS,
    "Ground truth": GROUND_TRUTH,
}

DEFINITIONS: dict[str, Definition] = {key: one for group in GROUPS.values() for key, one in group.items()}

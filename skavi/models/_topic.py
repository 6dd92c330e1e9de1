"""Topic model: documents as mixtures of topics, both logistic normal."""

import copy
import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from skavi._data.column_roles import ALL_EXPLAINED
from skavi.models._topic_closed_forms import LogisticNormal, log_mixture, tilted
from skavi.models._topic_draws import drawn_counts
from skavi.models._topic_start import best_topics

#: Words added to each frequency: a word that is never seen keeps a finite log frequency.
_PSEUDOCOUNT = 0.5
#: Words a document when sampling before a fit. Not measured: a short text.
_UNKNOWN_LENGTH = 100.0
_POWERS = (1.5, 3.0)  # of a first and a second look
_UNSEEN = 0.1  # words that a topic is taken to have in every document, when its log is read
#: Least probability of a word read in float32, so that counts over it stay finite; documents at
#: once, which bounds memory.
_SMALLEST, _CHUNK = 1e-12, 8_192
#: Nats a word. At the coarse one coefficients of 1 ended 0.06 to 0.4 too near to 0, at a finer one
#: of 1e-5 at rest (300 simulated documents of 20 and 80 words).
_COARSE, _FINE = 1e-3, 1e-6
_ROUNDED = 1e-4  # how far from one proportions may sum, as float32 and printed ones do
#: Nats: the exponential of twice that is near the largest number, and no share is so small.
_WIDEST = 300.0
_VECTOR = 8  # numbers in float64 that fill the longest registers
#: Keeps the log of a proportion of zero finite.
_SMALLEST_SHARE = 1e-300


class TopicModel(LogisticNormal):
    r"""Counts of words explained by a few topics, with a posterior over topics and proportions.

    A row of X holds how often each word (column) is in a document, here of :math:`N_n` words:

    .. math::

       x_n \sim {} & \mathrm{Multinomial}(N_n, \pi_n^\top \beta), \\
       \pi_n = {} & \mathrm{softmax}(z_n), \quad z_n \sim \mathrm{N}(0, s^2), \\
       \beta_k = {} & \mathrm{softmax}(t_k), \quad t_k \sim \mathrm{N}(\mu, \sigma^2)

    with the document's proportions of the topics :math:`\pi_n`, the probabilities of the words
    under each topic :math:`\beta_k`, `proportion_scale` s, `topic_loc` :math:`\mu` and
    `topic_scale` :math:`\sigma`.

    With `covariates` :math:`c_n` in further columns of X the topics' proportions move with them:
    :math:`z_n \sim \mathrm{N}(B (c_n - \bar c), s^2)`, with their means :math:`\bar c` in the
    training data and coefficients B.

    X is dense or CSR, and is held by its non-zeros either way. Any numbers >= 0 will do as counts.
    A row without words keeps its prior.

    Parameters
    ----------
    n_components : int, default=10
        Number of topics, and of latents a row: the logits z of the topics' proportions.
    proportion_scale : float, default=2.0
        Prior sd of these logits, in nats. Larger: fewer topics a document.
    topic_loc : array of shape (n_features,), default=None
        Prior mean of the topics' logits. None: the log frequency of each word in the training
        data, half a word added to each.
    topic_scale : float, default=2.0
        Prior sd of the topics' logits around it, in nats.
    resolution : float, default=None
        Nats a word at which coordinate ascent stops, where the estimator's ``tol`` asks for more.
        None: 1e-3, as a sweep that gains less changes no perplexity by more than 0.1 %; with
        covariates 1e-6, as coefficients still move when words are explained no better.
    covariates : str, int or list of them, default=None
        Names or places of columns of X that move the topics' shares, such as a year or a source;
        text and categories count a level at a time, against the first one. Beside sparse counts
        they are further columns, as ``scipy.sparse.hstack`` puts them there.
    coefficient_scale : float, array of shape (n_covariates,) or Distribution, default=None
        Prior sd of the coefficients B in nats a unit of the covariate, or their prior: a normal one
        about 0, or `skavi.distributions.Flat`. None: 2.5 times proportion_scale over the
        covariate's sd.

    Notes
    -----
    `transform` and `posterior` give the topics' proportions in each document: means and sds of
    :math:`\mathrm{softmax}(z)` under q(z), by 128 quasi-random points that are the same for all
    documents. Rows of means sum to one to rounding; in posteriors of an sd of up to 2 nats a logit
    the points leave an error of 0.003 (root mean square; 0.008 in the sds).
    ``posterior(X).logits`` is q(z) itself.

    Globals: "topics" (n_components, n_features), on the logit scale, which `word_probabilities` and
    `top_words` read, and with covariates "coefficients" (n_components, n_covariates): what a unit
    of a covariate adds to a topic's logit. Shares depend on differences of logits, so a covariate's
    coefficients sum to zero over the topics. The bound below draws them a little towards 0, which
    no sd knows: in 20 simulated corpora (300 documents of 200 words) a planted trend was within two
    corrected sds 17 times. The model of Roberts, Stewart & Airoldi (2016), "A
    model of text for experimentation in the social sciences", is another of this kind.

    The default ELBO is the bound of Blei & Lafferty (2007), "A correlated topic model of science",
    eq. 7-8, with each word's topic and the normalisers at their optimum:

    .. math::

       \mathrm{E} \log p(x \mid z, t) &\geq \sum_v x_v \log \sum_k \exp(\ell(z)_k + \ell(t_k)_v), \\
       \ell(u)_i &= m_i - \log \sum_j \exp(m_j + v_j / 2)

    for normal logits u with means m and variances v. It is deterministic; ``noise=MonteCarlo()``
    takes the expectation itself. Documents and topics are updated by one formula, `softmax_step`.

    Examples
    --------
    >>> from sklearn.feature_extraction.text import CountVectorizer
    >>> from skavi import FactorizedVI
    >>> from skavi.models import TopicModel
    >>> texts = ["cat dog cat pet", "dog cat dog pet", "bond stock fund", "stock fund stock bond"]
    >>> words = CountVectorizer()
    >>> vi = FactorizedVI(TopicModel(2), random_state=0).fit(words.fit_transform(texts))
    >>> shares = vi.transform(words.transform(["cat dog cat dog"]))
    >>> shares.shape, bool(abs(shares.sum() - 1) < 1e-12)
    ((1, 2), True)
    """

    accepts_sparse = True
    positive_only = True
    has_own_scale = True
    learned = (*LogisticNormal.learned, "lengths_", "words_a_row_", "words_read_")

    def __init__(
        self,
        n_components=10,
        *,
        proportion_scale=2.0,
        topic_loc=None,
        topic_scale=2.0,
        resolution=None,
        covariates=None,
        coefficient_scale=None,
    ):
        self.n_components = n_components
        self.proportion_scale = proportion_scale
        self.topic_loc = topic_loc
        self.topic_scale = topic_scale
        self.resolution = resolution
        self.covariates = covariates
        self.coefficient_scale = coefficient_scale

    def check(self):
        self._require_integer("n_components", 1)
        self._require_positive("proportion_scale")
        self._require_positive("topic_scale")
        for name in ("proportion_scale", "topic_scale"):
            self._require(name, getattr(self, name) <= _WIDEST, f"at most {_WIDEST} nats")
        self._require_vector("topic_loc")
        if self.resolution is not None:
            self._require_number("resolution")
            self._require("resolution", 0 <= self.resolution < float("inf"), ">= 0 and finite")
        self.check_covariates()

    def check_learned(self, n_features):
        super().check_learned(n_features)
        self._require_learned("lengths_", (None,))
        self._require("lengths_", (self.lengths_ >= 0).all(), ">= 0")
        self._require_finite("words_a_row_")
        self._require("words_a_row_", self.words_a_row_ >= 0, ">= 0")
        if hasattr(self, "words_read_"):
            self._require_learned("words_read_", (n_features, self.n_components), positive=True)

    def check_data(self, X):
        X = self._documents(X)
        self.check_number_of_scales()
        shape = np.shape(self.topic_loc)
        if self.topic_loc is not None and shape != (X.shape[1],):
            raise ValueError(
                f"TopicModel(topic_loc=...): topic_loc has shape {shape}, but X has {X.shape[1]} "
                "features: give one number a feature."
            )
        bad = (X.values < 0).nonzero()[:, 0]
        if len(bad):
            where = f"row {int(X.row[bad[0]])}, column {int(X.columns[bad[0]])}"
            raise ValueError(
                f"Negative values in data: X has {len(bad)} negative "
                f"{'entry' if len(bad) == 1 else 'entries'} (first at {where}), but TopicModel "
                "needs counts >= 0."
            )

    # --- the model ------------------------------------------------------------------------------

    def n_latents(self, n_features):
        return self.n_components

    def least_globals(self, n_features):
        return self.n_components * n_features + (self.n_components - 1) * self.n_covariates

    def global_prior(self, n_features):
        loc = torch.zeros(n_features) if self.topic_loc is None else self._loc()
        shape = self.n_components, n_features
        topics = Normal(loc.expand(shape), torch.tensor(float(self.topic_scale)))
        return {"topics": topics} | self.coefficient_prior()

    def _loc(self):
        return torch.as_tensor(np.asarray(self.topic_loc, dtype=np.float64))

    def local_prior(self, theta, *given):
        loc = torch.zeros(self.n_components)
        if given:
            loc = self._centred(given[0]) @ theta["coefficients"].mT
        return Normal(loc, float(self.proportion_scale))

    def prior_of_rows(self, theta, X):
        given = (self.given_columns(X),) if self.n_covariates else ()
        return self.latent_prior(self.n_explained(X), theta, *given)

    def likelihood(self, z, theta):
        raise NotImplementedError("TopicModel takes the documents' lengths from X.")

    def predicted_mean(self, theta, z, *given):
        """Return the probabilities of the words, shape (n_rows, n_features)."""
        return torch.softmax(z, -1) @ torch.softmax(theta["topics"], -1)

    def log_likelihood(self, theta, z, X):
        """Return log p(x_n | z_n, topics), shape (n_rows,), the multinomial coefficient in it."""
        words = torch.softmax(theta["topics"], -1).mT
        return log_mixture(self._documents(X), torch.softmax(z, -1), words)

    def replicate(self, theta, z, X):
        """Draw documents of the lengths of those in X, rounded; dense also for CSR."""
        drawn = drawn_counts(self.predicted_mean(theta, z), self._documents(X).totals)
        return torch.cat([drawn, self.given_columns(X).to(drawn)], -1)

    def simulate(self, theta, n_samples, n_features=1, *given):
        """Draw documents, their lengths from the training data's (100 words before a fit)."""
        prior = self.local_prior(theta, *given)
        z = prior.expand((n_samples, self.n_components)).sample().to(theta["topics"])
        known = torch.as_tensor(getattr(self, "lengths_", np.array([_UNKNOWN_LENGTH])))
        lengths = known[torch.randint(len(known), (n_samples,))].to(z.device)
        return drawn_counts(self.predicted_mean(theta, z), lengths), z

    def global_dims(self):
        known = {"coefficients": ("latent", "covariate")} if self.n_covariates else {}
        return {"topics": ("latent", "feature")} | known

    def adapted(self, X, weights):
        table, X = X, self._documents(X)
        frequency = X.over_columns(weights[X.row] * X.values) + _PSEUDOCOUNT
        if not math.isfinite(float(frequency.sum())):
            raise ValueError(
                "The counts of X, times the weights of its rows, add up to more than a "
                f"{frequency.dtype} number can hold: TopicModel needs smaller ones."
            )
        model = copy.copy(self)
        if self.topic_loc is None:
            model.topic_loc = (frequency / frequency.sum()).log().cpu().numpy()
        model.adapt_to_covariates(table, weights)
        model.lengths_ = X.totals[weights > 0].cpu().numpy().copy()
        model.words_a_row_ = _ordinary(X.totals, weights)
        return model

    def drawn_globals(self, X, weights, generator):
        """Return topics that were sought without covariates, and coefficients of zero."""
        plain, known = copy.copy(self), {}
        plain.columns_ = ALL_EXPLAINED
        with torch.no_grad():
            topics = best_topics(plain, self._documents(X), weights, generator)
        if self.n_covariates:
            known["coefficients"] = topics.new_zeros(self.n_components, self.n_covariates)
        return {"topics": topics} | known

    @property
    def coarsest_tol(self):  # type: ignore[override]
        own = _FINE if self.n_covariates else _COARSE
        resolution = own if self.resolution is None else self.resolution
        return resolution * max(getattr(self, "words_a_row_", 0.0), 1.0)

    # --- what inference functions read ----------------------------------------------------------

    def reading(self, globals_):
        model = copy.copy(self)
        words = tilted(*map(self._topics, (globals_.mean, globals_.sd)))
        model.words_read_ = words.mT.clamp_min(_SMALLEST).float().contiguous().cpu().numpy()
        return model

    def summary(self, X):
        """Return log expected counts of topics after a second look, log lengths, and covariates.

        A look splits every word among the topics by given proportions, at first all the same. In
        between, probabilities are raised to a power, which makes up for the looks that are left
        out: Salakhutdinov & Roweis (2003), "Adaptive overrelaxed bound optimization methods", eq.
        5. In float32: whatever a function reads, the ELBO of what it says is a bound.
        """
        if not hasattr(self, "words_read_"):
            return X
        documents, words = self._documents(X), torch.as_tensor(self.words_read_).to(X.device)
        looked = torch.cat([self._looked(part, words) for part in documents.split(_CHUNK)])
        return torch.cat([looked, self.given_columns(X)], 1)

    def _looked(self, X, words):
        rows = X.with_values(X.values.clamp_max(1 / _SMALLEST)).single()
        counts = rows @ _sharpened(words, _POWERS[0])
        length = counts.sum(-1, keepdim=True).log1p()
        p = _sharpened(counts + _UNSEEN, _POWERS[1])
        ratio = rows.values / rows.sampled(p, words).clamp_min(_SMALLEST)
        counts = p * rows.product(ratio, words)
        return torch.cat([(counts + _UNSEEN).log(), length], 1).to(X.dtype)

    # --- reading a fit --------------------------------------------------------------------------

    def latent_names(self, n_features):
        return [f"topic{k}" for k in range(self.n_components)]

    def own_scale(self, theta, z, *given):
        """Return the topics' proportions in documents of these logits.

        Along whole vectors of documents, which takes a sixth of the time for ten topics; their
        number is filled up, as results of a vector that is not full round differently.
        """
        n_rows = z.shape[-2]
        filled = torch.nn.functional.pad(z.mT, (0, -n_rows % _VECTOR))
        return torch.softmax(filled, -2)[..., :n_rows].mT

    def latents_of(self, theta, values, *given):
        """Return logits of the topics' proportions in documents, whose rows sum to one.

        Raises
        ------
        ValueError
            If these are no proportions.
        """
        fine = (values >= 0).all(-1) & ((values.sum(-1) - 1).abs() <= _ROUNDED)
        if not bool(fine.all()):
            raise ValueError(
                "Z must hold proportions of topics, >= 0 and with rows that sum to 1, but row "
                f"{int((~fine).nonzero()[0, 0])} is none: pass on what transform returns."
            )
        return values.clamp_min(_SMALLEST_SHARE).log()

    def proportions(self, Z):
        """Raise: `transform` gives proportions itself."""
        raise TypeError(
            "transform(X) and posterior(X) already give the topics' proportions, rows summing to "
            "1: use them as they are (posterior(X).logits has the logits)."
        )

    def word_probabilities(self, global_posterior):
        """Return the words' expected probabilities under each topic, to first order.

        softmax(m + s^2 / 2): the ratio of the expectations, which for the topics' thousands of
        words is the expectation of the ratio.

        Parameters
        ----------
        global_posterior : GlobalPosterior
            A fit's ``global_posterior_``.

        Returns
        -------
        ndarray of shape (n_components, n_features)
            Rows sum to one.
        """
        mean, sd = (
            torch.as_tensor(m["topics"]) for m in (global_posterior.mean, global_posterior.sd)
        )
        return torch.softmax(mean + 0.5 * sd**2, -1).numpy()

    def top_words(self, global_posterior, feature_names, n_words=10):
        """Return the most probable words of each topic.

        Parameters
        ----------
        global_posterior : GlobalPosterior
            A fit's ``global_posterior_``.
        feature_names : array-like of shape (n_features,)
            As `CountVectorizer.get_feature_names_out` gives them.
        n_words : int, default=10
            Words a topic.

        Returns
        -------
        list of list of str
            One list a topic, the most probable word first.
        """
        order = np.argsort(-self.word_probabilities(global_posterior), axis=1, kind="stable")
        names = np.asarray(feature_names)
        if len(names) != order.shape[1]:
            raise ValueError(
                f"feature_names has {len(names)} names, but the topics have {order.shape[1]} words."
            )
        return names[order[:, :n_words]].tolist()


def _ordinary(totals: Tensor, weights: Tensor) -> float:
    """Return the weighted median of lengths: no huge document makes the rest's rule coarse."""
    order = totals.argsort()
    below = weights[order].cumsum(0)
    return float(totals[order][(below < 0.5 * below[-1]).sum()])


def _sharpened(p: Tensor, power: float) -> Tensor:
    """Raise probabilities to a power; rows sum to one again."""
    powers = (p / p.amax(-1, keepdim=True)) ** power
    return powers / powers.sum(-1, keepdim=True)

"""The systems, behind one interface: fit ratings, return a function that predicts.

A system is a function of the ratings and the options of a fit. Everything between its
call and its return is timed, also what brings the ratings into the form that the system
wants; not timed is the function that it returns, which predicts the held-out places.
Modules are imported inside, since each environment has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

Array = Any
Predict = Callable[[], Array]
LARGEST_COMPLETE = 2**28  # entries


@dataclass(frozen=True)
class Ratings:
    """What a system sees: training triplets, and the places to predict."""

    shape: tuple[int, int]
    rows: Array
    columns: Array
    values: Array
    test_rows: Array
    test_columns: Array


@dataclass(frozen=True)
class Options:
    """How to fit: what is the same for all systems, and a system's own parameters."""

    rank: int
    iterations: int
    threads: int
    own: dict[str, Any]


def dmf(ratings: Ratings, options: Options) -> Predict:
    import dask

    import dmf

    dask.config.set(num_workers=options.threads)
    own = options.own
    shared = own["ridge"] * own.get("entries", 0)
    X = sp.coo_array((ratings.values, (ratings.rows, ratings.columns)), ratings.shape)
    fit = dmf.factorize(
        X,
        options.rank,
        offsets="both",
        penalty=dmf.Ridge(own["ridge"], by_count=own["by_count"]) + dmf.Ridge(shared),
        offset_penalty=dmf.Ridge(own["offset_ridge"]),
        solver=dmf.NormalizedGradient(scaled=own["scaled"]),
        max_rounds=options.iterations,
        tol=0,
        progress=False,
    )
    return lambda: fit.predict(ratings.test_rows, ratings.test_columns)


def cmfrec(ratings: Ratings, options: Options) -> Predict:
    """Alternating least squares by conjugate gradients, its default."""
    from cmfrec import CMF

    X = sp.coo_matrix((ratings.values, (ratings.rows, ratings.columns)), ratings.shape)
    model = CMF(
        k=options.rank,
        method="als",
        niter=options.iterations,
        lambda_=options.own["ridge"],
        scale_lam=options.own["by_count"],
        use_float=True,
        # Only needed to predict for rows that weren't there at the fit.
        precompute_for_predictions=False,
        nthreads=options.threads,
        verbose=False,
    )
    model.fit(X)
    return lambda: model.predict(user=ratings.test_rows, item=ratings.test_columns)


def libmf(ratings: Ratings, options: Options) -> Predict:
    """Stochastic gradients. Its own predict() returns wrong values: use its factors."""
    from libmf import mf

    level = Level.of(ratings, options.own["level"])
    triplets = np.empty((len(ratings.values), 3), np.float32)
    triplets[:, 0], triplets[:, 1] = ratings.rows, ratings.columns
    triplets[:, 2] = level.rest(ratings)
    model = mf.MF(
        k=options.rank,
        nr_iters=options.iterations,
        nr_threads=options.threads,
        lambda_p2=options.own["ridge"],
        lambda_q2=options.own["ridge"],
        lambda_p1=0.0,
        lambda_q1=0.0,
        eta=options.own["eta"],
        quiet=True,
    )
    model.fit(triplets)

    def predict() -> Array:
        return level.predict(ratings, model.p_factors(), model.q_factors())

    return predict


def lenskit(ratings: Ratings, options: Options) -> Predict:
    import pandas as pd
    from lenskit.als import BiasedMFConfig, BiasedMFScorer
    from lenskit.data import from_interactions_df
    from lenskit.training import TrainingOptions

    columns = {"user": ratings.rows, "item": ratings.columns, "rating": ratings.values}
    data = from_interactions_df(pd.DataFrame(columns))
    config = BiasedMFConfig(
        embedding_size=options.rank,
        epochs=options.iterations,
        regularization=options.own["ridge"],
        damping=options.own["damping"],
    )
    model = BiasedMFScorer(config)
    model.train(data, TrainingOptions(rng=0))

    def predict() -> Array:
        bias = model.bias
        users, items = model.users.ids(), model.items.ids()
        m, n = ratings.shape
        b, W = scatter(m, users, bias.user_biases, model.user_embeddings)
        c, H = scatter(n, items, bias.item_biases, model.item_embeddings)
        level = Level(bias.global_bias, b, c)
        return level.predict(ratings, W, H)

    return predict


def spark(ratings: Ratings, options: Options) -> Predict:
    import pyarrow as pa
    from pyspark.ml.recommendation import ALS

    session = spark_session(options.threads)
    level = Level.of(ratings, options.own["level"])
    names = ("user", "item", "rating")
    table = pa.table([ratings.rows, ratings.columns, level.rest(ratings)], names=names)
    als = ALS(
        rank=options.rank,
        maxIter=options.iterations,
        regParam=options.own["ridge"],
        # Its default of 10 is for clusters: here a block a thread is faster.
        numUserBlocks=options.threads,
        numItemBlocks=options.threads,
        seed=0,
    )
    # Cached, since its fit goes through the table several times.
    frame = session.createDataFrame(table).cache()
    model = als.fit(frame)
    frame.unpersist()

    def predict() -> Array:
        W, H = (
            scatter(length, table["id"], np.stack(table["features"]), absent=np.nan)[0]
            for length, table in zip(
                ratings.shape,
                (model.userFactors.toPandas(), model.itemFactors.toPandas()),
                strict=True,
            )
        )
        return level.predict(ratings, W, H)

    return predict


def spark_session(threads: int) -> Any:
    """Return the session, which the fit that warms up has started.

    The deep stack is for the plan of many iterations, which grows with each of them.
    """
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{threads}]")
        .config("spark.driver.memory", "6g")
        .config("spark.driver.extraJavaOptions", "-Xss64m")
        .config("spark.driver.host", "localhost")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        # Below this size it sends tables with each task, which is far slower.
        .config("spark.sql.execution.arrow.localRelationThreshold", "0")
        .config("spark.sql.shuffle.partitions", str(threads))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    return session


def surprise(ratings: Ratings, options: Options) -> Predict:
    """Stochastic gradients, on one thread: it knows no more."""
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    columns = {"user": ratings.rows, "item": ratings.columns, "rating": ratings.values}
    scale = float(ratings.values.min()), float(ratings.values.max())
    table = Dataset.load_from_df(pd.DataFrame(columns), Reader(rating_scale=scale))
    train = table.build_full_trainset()
    model = SVD(
        n_factors=options.rank,
        n_epochs=options.iterations,
        lr_all=options.own["rate"],
        reg_all=options.own["ridge"],
        random_state=0,
    ).fit(train)

    def predict() -> Array:
        users = [train.to_raw_uid(i) for i in range(train.n_users)]
        items = [train.to_raw_iid(j) for j in range(train.n_items)]
        m, n = ratings.shape
        b, W = scatter(m, users, model.bu, model.pu)
        c, H = scatter(n, items, model.bi, model.qi)
        return Level(train.global_mean, b, c).predict(ratings, W, H)

    return predict


def smurff(ratings: Ratings, options: Options) -> Predict:
    """Bayesian, by Gibbs sampling: the mean over the samples after the burn-in.

    It predicts the held-out places while it samples, so that is part of its time.
    """
    from smurff import AdaptiveNoise, TrainSession

    level = Level.of(ratings, "mean")
    X = sp.coo_matrix(
        (level.rest(ratings).astype(np.float64), (ratings.rows, ratings.columns)),
        ratings.shape,
    )
    places = (ratings.test_rows, ratings.test_columns)
    # Values of the held-out places only go into what it prints; zeros would be dropped.
    wanted = sp.coo_matrix((np.ones(len(places[0])), places), ratings.shape)
    burn_in = options.iterations // 3
    session = TrainSession(
        num_latent=options.rank,
        num_threads=options.threads,
        burnin=burn_in,
        nsamples=options.iterations - burn_in,
        seed=0,
        verbose=0,
    )
    session.addTrainAndTest(X, wanted, AdaptiveNoise(1.0, 10.0), is_scarce=True)
    found = session.run()

    def predict() -> Array:
        rows, columns = np.array([one.coords for one in found]).T
        means = np.array([one.pred_avg for one in found])
        table = sp.csr_array((means, (rows, columns)), ratings.shape)
        return level.base(ratings) + np.asarray(table[places]).ravel()

    return predict


def implicit(ratings: Ratings, options: Options) -> Predict:
    """Weighted least squares on clicks: another problem, so only its speed counts."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    X = sp.csr_matrix(
        (np.abs(ratings.values) + 1, (ratings.rows, ratings.columns)), ratings.shape
    )
    model = AlternatingLeastSquares(
        factors=options.rank,
        iterations=options.iterations,
        regularization=options.own["ridge"],
        num_threads=options.threads,
        random_state=0,
    )
    # It has threads of its own, and asks for this.
    with threadpool_limits(1, "blas"):
        model.fit(X, show_progress=False)
    return lambda: np.full(len(ratings.test_rows), np.nan)


def nmf(ratings: Ratings, options: Options) -> Predict:
    """scikit-learn's, which knows no missing values: offsets fill them in.

    Shifted, for it wants nothing negative.
    """
    from sklearn.decomposition import NMF

    m, n = ratings.shape
    if m * n > LARGEST_COMPLETE:
        msg = f"it wants a complete matrix, of {4e-9 * m * n:.1f} GB"
        raise MemoryError(msg)
    level = Level.of(ratings, "offsets")
    X = level.complete(ratings)
    lowest = X.min()
    X -= lowest
    model = NMF(options.rank, max_iter=options.iterations, tol=0, init="nndsvda")
    W = model.fit_transform(X)

    def predict() -> Array:
        W_, H_ = W[ratings.test_rows], model.components_.T[ratings.test_columns]
        return lowest + np.einsum("ij,ij->i", W_, H_)

    return predict


def truncated_svd(ratings: Ratings, options: Options) -> Predict:
    """scikit-learn's, which takes what is missing for zeros: offsets are taken off."""
    from sklearn.decomposition import TruncatedSVD

    level = Level.of(ratings, "offsets")
    X = sp.csr_matrix(
        (level.rest(ratings), (ratings.rows, ratings.columns)), ratings.shape
    )
    model = TruncatedSVD(options.rank, n_iter=options.iterations, random_state=0)
    W = model.fit_transform(X)
    return lambda: level.predict(ratings, W, model.components_.T)


@dataclass(frozen=True)
class Level:
    """The offsets μ + b_i + c_j of ratings: for systems that fit none themselves."""

    mean: float
    b: Array | None = None
    c: Array | None = None

    @classmethod
    def of(cls, ratings: Ratings, kind: str, damping: float = 5.0) -> Level:
        """Return no level ("none"), the mean alone ("mean") or damped "offsets"."""
        if kind == "none":
            return cls(0.0)
        mean = float(ratings.values.mean(dtype=np.float64))
        if kind == "mean":
            return cls(mean)
        m, n = ratings.shape
        rest = ratings.values - np.float32(mean)
        c = damped_means(ratings.columns, rest, n, damping)
        b = damped_means(ratings.rows, rest - c[ratings.columns], m, damping)
        return cls(mean, b, c)

    def at(self, rows: Array, columns: Array) -> Array:
        """Return the level at some places."""
        if self.b is None or self.c is None:
            # Without the cost of looking up zeros for systems that want no offsets.
            return np.float32(self.mean)
        return np.float32(self.mean) + self.b[rows] + self.c[columns]

    def rest(self, ratings: Ratings) -> Array:
        """Return the training values less the level."""
        return ratings.values - self.at(ratings.rows, ratings.columns)

    def base(self, ratings: Ratings) -> Array:
        """Return the level at the held-out places."""
        return self.at(ratings.test_rows, ratings.test_columns)

    def complete(self, ratings: Ratings) -> Array:
        """Return the whole matrix, the level standing for what is missing."""
        m, n = ratings.shape
        X = self.at(np.arange(m)[:, None], np.arange(n))
        X[ratings.rows, ratings.columns] = ratings.values
        return X

    def predict(self, ratings: Ratings, W: Array, H: Array) -> Array:
        """Return level + W Hᵀ at the held-out places.

        Rows and columns that the system hasn't seen are beyond its factors, or NaN in
        them: the level alone is predicted there. Where there is none, the mean is.
        """
        rows, columns = ratings.test_rows, ratings.test_columns
        known = (rows < len(W)) & (columns < len(H))
        products = np.full(len(rows), np.nan)
        products[known] = np.einsum("ij,ij->i", W[rows[known]], H[columns[known]])
        unseen = 0.0 if self.mean else ratings.values.mean(dtype=np.float64)
        return self.base(ratings) + np.where(np.isnan(products), unseen, products)


def damped_means(ids: Array, values: Array, length: int, damping: float) -> Array:
    counts = np.bincount(ids, minlength=length)
    sums = np.bincount(ids, weights=values, minlength=length)
    return (sums / (counts + damping)).astype(np.float32)


def scatter(length: int, ids: Array, *arrays: Array, absent: float = 0.0) -> list[Any]:
    """Return arrays with their rows at the ids, and `absent` at all other ids."""
    spread = []
    for array in arrays:
        whole = np.full((length, *np.shape(array)[1:]), absent)
        whole[np.asarray(ids)] = array
        spread.append(whole)
    return spread


SYSTEMS: dict[str, Callable[[Ratings, Options], Predict]] = {
    "dmf": dmf,
    "dmf, default": dmf,
    "cmfrec": cmfrec,
    "LIBMF": libmf,
    "LensKit": lenskit,
    "Spark ALS": spark,
    "Surprise SVD": surprise,
    "SMURFF BPMF": smurff,
    "implicit": implicit,
    "NMF": nmf,
    "TruncatedSVD": truncated_svd,
}

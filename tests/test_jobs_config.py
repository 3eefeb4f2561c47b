"""Job files: what they may say, and what is said about those that can't be right."""

from __future__ import annotations

import random
import re
import signal
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dmf import cli
from dmf._options import SOLVERS
from dmf.jobs.apart import check_apart
from dmf.jobs.config import CLUSTERS, InputSection, Job, ModelSection, SolverSection
from dmf.jobs.exits import MEANINGS, Exit, JobError
from dmf.jobs.overrides import read_settings
from dmf.jobs.problems import read_job
from dmf.jobs.where import kubernetes_spec, slurm_options
from dmf.offsets import COLUMNS
from dmf.secrets import HIDDEN, without_secrets
from dmf.triplets import DUPLICATES
from tests.jobs import job_file

EXAMPLE = files("dmf.jobs").joinpath("example.toml").read_text(encoding="utf-8")


def problems(
    folder: Path, *given: str, text: str | None = None, **sections: Any
) -> Any:
    """Return the lines about a job that is wrong, without the path of its file."""
    path = job_file(folder, **sections)
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobError) as caught:
        read_job(path, {}, given)
    assert caught.value.code == Exit.BAD_CONFIGURATION
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


# ------------------------------------------------------------------------ what is known


def test_choices_are_those_of_the_library() -> None:
    def options(section: Any, name: str) -> tuple[Any, ...]:
        return get_args(section.model_fields[name].annotation)

    assert options(InputSection, "duplicates") == DUPLICATES
    assert options(ModelSection, "offsets") == tuple(COLUMNS)
    assert options(SolverSection, "name") == tuple(SOLVERS)
    kinds = [kind.model_fields["kind"].annotation for kind in CLUSTERS.values()]
    assert [get_args(kind)[0] for kind in kinds] == list(CLUSTERS)


def test_the_example_is_a_job_and_names_every_key(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(EXAMPLE)
    job = read_job(path, {})
    assert job.output.model == str(tmp_path / "model.zarr")
    sections = dict(Job.model_fields)
    for name in sections:
        assert f"[{name}]" in EXAMPLE
    kinds: list[Any] = [field.annotation for field in sections.values()]
    for kind in [*CLUSTERS.values(), *(k for k in kinds if isinstance(k, type))]:
        for key in kind.model_fields:
            assert re.search(rf"\b{key}\b", EXAMPLE), key


def test_commented_keys_of_the_example_are_known(tmp_path: Path) -> None:
    """All of them at once, but for the columns, which need a table."""
    lines = EXAMPLE.split("[cluster]")[0].splitlines()
    text = "\n".join(
        line.removeprefix("# ") for line in lines if "=" in line or "[" in line
    )
    text = "\n".join(
        line for line in text.splitlines() if re.match(r"(\[|[a-z_]+ = )", line)
    )
    settings = tomllib.loads(text)
    for column in ("row", "column", "value", "weight", "index", "duplicates"):
        assert settings["input"].pop(column)
    job = Job.model_validate(settings | {"output": {"model": "m"}})
    assert job.model.penalty is not None
    assert (job.model.penalty.by_count, job.job.strict) == (True, True)


def test_paths_are_seen_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = job_file(tmp_path, input={"path": "s3://bucket/X.zarr"}, log={"file": "/l"})
    job = read_job(path, {"DMF_REPORT__FOLDER": "runs"})
    assert job.input.path == "s3://bucket/X.zarr"
    assert job.output.matrix == str(tmp_path / "filled.npy")
    assert job.report.folder == str(tmp_path / "runs")
    assert job.log.file == "/l"


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"model": {"rnak": 3}},
            "model.rnak isn't a known key; did you mean model.rank?",
        ),
        ({"modle": {"a": 3}}, "modle isn't a known key; did you mean model?"),
        (
            {"input": {"seed": 3}},
            "input.seed isn't a known key; did you mean model.seed?",
        ),
        (
            {"guards": {"xyz": 3}},
            "guards.xyz isn't a known key; [guards] takes worsened, missing",
        ),
        (
            {"model": {"penalty": {"ridg": 3}}},
            "model.penalty.ridg isn't a known key; did you mean model.penalty.ridge?",
        ),
        ({"model": {"rank": None}}, "model.rank is missing; give it a value"),
        ({"model": {"rank": "3"}}, "model.rank must be a whole number, got '3'"),
        ({"model": {"rank": True}}, "model.rank must be a whole number, got True"),
        ({"model": {"rank": 0}}, "model.rank must be at least 1, got 0"),
        ({"model": {"validation": 1}}, "model.validation must be below 1.0, got 1"),
        (
            {"model": {"offsets": "row"}},
            'model.offsets must be one of "none", "global", "rows", "columns", "both", '
            "got 'row'; did you mean \"rows\"?",
        ),
        (
            {"model": {"penalty": "none"}},
            'model.penalty must be "auto", or a table with ridge, by_count, lasso, '
            "non_negative, got 'none'",
        ),
        ({"job": {"strict": 1}}, "job.strict must be true or false, got 1"),
        (
            {"job": {"wait": "soon"}},
            "job.wait must be seconds, or a time such as 90s, 10min or 2h, got 'soon'",
        ),
        ({"job": {"wait": -1}}, "job.wait must be at least 0, got -1"),
        (
            {"checkpoint": {"every": 0}},
            "checkpoint.every must be a number of rounds above 0, or a time such as "
            "90s, 10min or 2h, got 0",
        ),
        (
            {"cluster": {"workers": 2}},
            'cluster.kind is missing; give one of "threads", "processes", "scheduler", '
            '"slurm", "kubernetes"',
        ),
        (
            {"cluster": {"kind": "slrum"}},
            'cluster.kind must be one of "threads", "processes", "scheduler", "slurm", '
            '"kubernetes", got \'slrum\'; did you mean "slurm"?',
        ),
        (
            {"cluster": {"kind": "processes", "workers": 2, "adress": "x"}},
            "cluster.adress isn't a known key; [cluster] takes kind, workers, timeout",
        ),
        (
            {"input": {"row": "user"}},
            "[input] a table with one observation a line needs row, column and value, "
            "the names of its columns; got row='user', column=None, value=None",
        ),
        (
            {"output": {"matrix": None}},
            "[output] mask says which cells of matrix are imputed; give matrix as well",
        ),
        (
            {"model": {"validation": None}, "guards": {"worsened": 0.2}},
            "guards.worsened compares errors on held-out entries; hold some out with "
            "model.validation, such as 0.1",
        ),
        ({"input": {"path": 3}}, "input.path must be a text, in quotes, got 3"),
        ({"input": {"path": ""}}, "input.path must be a path or a URL, got ''"),
    ],
)
def test_one_sentence_a_problem(
    sections: dict[str, Any], line: str, tmp_path: Path
) -> None:
    assert problems(tmp_path, **sections) == [line]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    lines = problems(tmp_path, "log.format=jsno", model={"rank": 0}, guards={"x": 1})
    assert len(lines) == 3
    assert lines[-1] == (
        'log.format must be one of "human", "json", got \'jsno\' (from --set '
        'log.format); did you mean "json"?'
    )


def test_no_place_has_two_names(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, output={"matrix": "X.npy"})
    place = tmp_path / "X.npy"
    assert line == f"input.path and output.matrix are both {place}; name two places"


@pytest.mark.parametrize(
    ("sections", "inner", "outer"),
    [
        ({"output": {"matrix": "X.npy/o.zarr"}}, "output.matrix", "input.path"),
        ({"output": {"mask": "X.npy/o.zarr"}}, "output.mask", "input.path"),
        ({"log": {"file": "X.npy/log"}}, "log.file", "input.path"),
        ({"report": {"folder": "X.npy/runs"}}, "report.folder", "input.path"),
        ({"report": {"prometheus": "X.npy/a.prom"}}, "report.prometheus", "input.path"),
        ({"checkpoint": {"path": "X.npy/saved"}}, "checkpoint.path", "input.path"),
        ({"input": {"path": "model.zarr/W"}}, "input.path", "output.model"),
        (
            {"input": {"mask": "runs/m.npy"}, "report": {"folder": "runs"}},
            "input.mask",
            "report.folder",
        ),
        ({"output": {"matrix": "model.zarr/f.npy"}}, "output.matrix", "output.model"),
        ({"log": {"file": "model.zarr/log"}}, "log.file", "output.model"),
        ({"report": {"folder": "model.zarr/runs"}}, "report.folder", "output.model"),
        ({"checkpoint": {"path": "model.zarr/c"}}, "checkpoint.path", "output.model"),
    ],
)
def test_no_place_is_inside_another(
    sections: dict[str, Any], inner: str, outer: str, tmp_path: Path
) -> None:
    (line,) = problems(tmp_path, **sections)
    assert re.fullmatch(
        rf"{inner} \(.*\) is inside {outer} \(.*\); name two places that are apart",
        line,
    )


def test_places_are_compared_without_links(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    (line,) = problems(
        tmp_path, input={"path": "data/z.zarr"}, log={"file": "link/z.zarr/log"}
    )
    assert line.startswith("log.file (")
    (line,) = problems(
        tmp_path, input={"path": "data/z.zarr"}, log={"file": "link/z.zarr"}
    )
    assert line.startswith("input.path and log.file are both ")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"log": {"file": "job.toml"}}, "log.file"),
        ({"log": {"file": "../{folder}/job.toml"}}, "log.file"),
        ({"report": {"prometheus": "job.toml"}}, "report.prometheus"),
        ({"checkpoint": {"path": "job.toml"}}, "checkpoint.path"),
        ({"output": {"matrix": "job.toml"}}, "output.matrix"),
    ],
)
def test_a_job_is_not_overwritten(
    sections: dict[str, Any], key: str, tmp_path: Path
) -> None:
    for section in sections.values():
        for name, place in section.items():
            section[name] = place.format(folder=tmp_path.name)
    (line,) = problems(tmp_path, **sections)
    place = tmp_path / "job.toml"
    assert line == f"this job and {key} are both {place}; name two places"


@pytest.mark.parametrize("key", ["input.path", "input.mask", "output.model"])
def test_logs_are_apart_from_what_is_read_and_written(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    sections = {section: {name: "place.zarr"}, "log": {"file": "./place.zarr"}}
    (line,) = problems(tmp_path, **sections)
    place = tmp_path / "place.zarr"
    assert line == f"{key} and log.file are both {place}; name two places"


def test_reports_may_be_beside_the_job(tmp_path: Path) -> None:
    path = job_file(tmp_path, input={"path": "../X.npy"}, report={"folder": "."})
    assert read_job(path, {}).report.folder == str(tmp_path)


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    st.sampled_from(["/", "s3://bucket/"]),
)
def test_places_meet_if_one_begins_with_the_other(
    first: list[str], second: list[str], root: str
) -> None:
    given_first, given_second = (root + "/".join(parts) for parts in (first, second))
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        with pytest.raises(ValueError, match="name two places"):
            check_apart({"input.path": given_first}, {"log.file": given_second})
    else:
        check_apart({"input.path": given_first}, {"log.file": given_second})
    check_apart({"input.path": root + "a/b", "input.mask": root + "a"}, {})


def test_logs_may_be_beside_data_and_reports(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        input={"path": "group.zarr/X", "mask": "group.zarr/M"},
        report={"folder": "runs", "prometheus": "runs/a.prom"},
        log={"file": "runs/log"},
    )
    assert read_job(path, {}).log.file == str(tmp_path / "runs" / "log")


def test_columns_are_for_tables(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, input={"index": "day"})
    assert line.startswith(f"[input] {tmp_path / 'X.npy'} isn't a table (.csv, .tsv,")


def test_files_that_are_no_jobs(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, text="[model\nrank = 3")
    assert "job.toml isn't TOML (Expected ']'" in line
    with pytest.raises(JobError, match=r"no file .*no.toml; `dmf init .*no.toml` wri"):
        read_job(tmp_path / "no.toml", {})
    with pytest.raises(JobError, match=r"read \(Is a directory\); name a file"):
        read_job(tmp_path, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="binary isn't TOML"):
        read_job(tmp_path / "binary", {})


def mutated(rng: random.Random, text: str) -> str:
    """Spoil a job file somewhere: a character, a line, a key or a value."""
    lines = text.splitlines()
    k = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        return "\n".join(lines[:k] + lines[k + 1 :])
    if how == 1:
        lines[k] = "".join(rng.sample(lines[k], len(lines[k])))
    if how == 2:
        lines.insert(k, f"{rng.choice(['rnak', 'x', 'path'])} = {rng.randrange(9)}")
    if how == 3:
        values = ["-1", "nan", "''", "true", "[1]", "{a=1}", "1e400", "1979-05-27"]
        lines[k] = f"{lines[k].split('=')[0]} = {rng.choice(values)}"
    if how == 4:
        lines[k] = "[" + "".join(rng.choices("abcmodel.\"'\n]", k=8))
    if how == 5:
        place = rng.randrange(len(text))
        return text[:place] + chr(rng.randrange(1, 0x3000)) + text[place + 1 :]
    return "\n".join(lines)


def test_malformed_files_end_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with a file: one line a problem, and never a traceback."""
    monkeypatch.chdir(tmp_path)
    text = job_file(
        tmp_path,
        model={"penalty": {"ridge": 0.1}, "offsets": "both"},
        cluster={"kind": "processes", "workers": 2},
        job={"wait": "5min"},
    ).read_text()
    rng, refused = random.Random(0), 0
    for _ in range(1000):
        (tmp_path / "job.toml").write_text(mutated(rng, text), encoding="utf-8")
        result = CliRunner().invoke(cli.main, ["run", "job.toml", "--dry-run"])
        assert isinstance(result.exception, SystemExit | None)
        # What is still right fails for want of its input.
        assert result.exit_code in (2, 3), result.output
        for line in result.stderr.splitlines():
            assert line.startswith("Error: ")
        refused += result.exit_code == 2
        if refused == 250:
            break
    assert refused == 250


# ---------------------------------------------------------------------------- overrides


def test_set_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = job_file(tmp_path, model={"rank": 3, "seed": 1, "patience": 4})
    environ = {
        "DMF_MODEL__RANK": "4",
        "DMF_MODEL__SEED": "5",
        "DMF_DATA": "/somewhere",
        "DMF_MODEL__PENALTY__RIDGE": "0.5",
        "PATH": "/bin",
    }
    given = ["model.rank=6", "solver.name=als", "model.offsets='both'"]
    job = read_job(path, environ, given)
    assert (job.model.rank, job.model.seed, job.model.patience) == (6, 5, 4)
    assert (job.solver.name, job.model.offsets) == ("als", "both")
    assert job.model.penalty is not None
    assert job.model.penalty.ridge == 0.5


def test_problems_say_where_a_value_is_from(tmp_path: Path) -> None:
    path = job_file(tmp_path)
    with pytest.raises(JobError, match=r"got 0 \(from the variable DMF_MODEL__RANK\)$"):
        read_job(path, {"DMF_MODEL__RANK": "0"})
    with pytest.raises(JobError, match=r"known key \(from --set model.rnak\); did you"):
        read_job(path, {}, ["model.rnak=3"])


def test_unknown_tables_say_where_they_are_from(tmp_path: Path) -> None:
    path = job_file(tmp_path)
    with pytest.raises(JobError) as caught:
        read_job(path, {"DMF_FOO__BAR": "1"})
    told = str(caught.value).removeprefix(f"{path}: ")
    assert told.startswith(
        "foo isn't a known key (from the variable DMF_FOO__BAR); a j"
    )


@pytest.mark.parametrize("given", ["rank=3", "model.rank", "=3", "model.=3", ""])
def test_set_needs_a_key_and_a_value(given: str, tmp_path: Path) -> None:
    (line,) = problems(tmp_path, given)
    assert line.startswith("--set takes section.key=value, as in model.rank=8, got")


@given(
    st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
)
def test_values_are_those_of_toml(value: Any) -> None:
    text = str(value).lower()
    (found,) = overridden(text).values()
    assert found == value
    assert type(found) is type(value)


@given(st.from_regex(r"[a-z/][A-Za-z/ .:=-]{0,20}", fullmatch=True))
def test_other_values_are_text(text: str) -> None:
    (found,) = overridden(text).values()
    assert found == (tomllib.loads(f"x={text}")["x"] if text in TOML_WORDS else text)


TOML_WORDS = ("true", "false", "inf", "nan")


def overridden(text: str) -> Any:
    settings, _ = read_settings(Path("/dev/null"), {}, [f"section.key={text}"])
    return settings["section"]


# ------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("s3://me:pass@host/x", f"s3://{HIDDEN}@host/x"),
        ("can't open http://a:b@c/d: no", f"can't open http://{HIDDEN}@c/d: no"),
        ('bucket name "me:pass@host" is bad', f'bucket name "{HIDDEN}@host" is bad'),
        (
            "https://h/x?X-Amz-Signature=ab&n=1",
            f"https://h/x?X-Amz-Signature={HIDDEN}&n=1",
        ),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, {"AWS_SECRET_ACCESS_KEY": HIDDEN}),
        ({"token": "x", "monkey": "y"}, {"token": HIDDEN, "monkey": "y"}),
        ({"password": None, "api_key": ""}, {"password": None, "api_key": ""}),
        (
            [{"name": "DB_PASSWORD", "value": "x"}],
            [{"name": "DB_PASSWORD", "value": HIDDEN}],
        ),
        ({"keys": ["a", "b"]}, {"keys": [HIDDEN, HIDDEN]}),
        ({"rank": 3, "path": "/home/x"}, {"rank": 3, "path": "/home/x"}),
    ],
)
def test_secrets_are_taken_out(value: Any, shown: Any) -> None:
    assert without_secrets(value) == shown


def test_no_secret_is_shown(tmp_path: Path) -> None:
    cluster = {
        "kind": "kubernetes",
        "image": "dmf",
        "workers": 1,
        "env": {"DB_PASSWORD": "hunter2"},
    }
    path = job_file(
        tmp_path, input={"path": "s3://me:hunter2@host/X.zarr"}, cluster=cluster
    )
    for arguments in ([], ["--set", "input.index=day"]):
        result = CliRunner().invoke(
            cli.main, ["run", str(path), "--dry-run", *arguments]
        )
        assert result.exit_code != 0
        assert "hunter2" not in result.output
        assert "Traceback" not in result.output


# ----------------------------------------------------------------------------- clusters


def test_the_script_of_a_slurm_job() -> None:
    from dmf.engine.cluster import slurm_cluster
    from dmf.jobs.config import Slurm

    settings = Slurm(
        kind="slurm",
        jobs=3,
        cores=4,
        processes=2,
        memory="8GB",
        queue="long",
        account="lab",
        walltime="02:00:00",
        directives=["--exclusive"],
        prologue=["module load python"],
    )
    before = signal.getsignal(signal.SIGINT)
    with slurm_cluster(interface="lo", **slurm_options(settings)) as cluster:
        script = cluster.job_script()
    # The library would have Ctrl-C end the process, without a checkpoint.
    assert signal.getsignal(signal.SIGINT) is before
    for line in (
        "#SBATCH -p long",
        "#SBATCH -A lab",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH -t 02:00:00",
        "#SBATCH --exclusive",
        "export MALLOC_TRIM_THRESHOLD_=2147483647",
        "export MALLOC_MMAP_THRESHOLD_=33554432",
        "module load python",
    ):
        assert line in script.splitlines()
    for option in ("--nworkers 2", "--nthreads 2", "--interface lo"):
        assert option in script


def test_the_cluster_that_kubernetes_is_asked_for() -> None:
    from dmf.engine.cluster import KEPT_MEMORY
    from dmf.jobs.config import Kubernetes

    settings = Kubernetes(
        kind="kubernetes",
        image="registry/dmf:1",
        workers=5,
        cores=2,
        memory="4Gi",
        namespace="science",
        env={"A": "1"},
        timeout=90.0,
    )
    spec = kubernetes_spec(settings)
    assert (spec["kind"], spec["metadata"]) == (
        "DaskCluster",
        {"name": "dmf", "namespace": "science"},
    )
    worker = spec["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert (worker["replicas"], container["image"]) == (5, "registry/dmf:1")
    assert container["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    for name, value in {**KEPT_MEMORY, "A": "1"}.items():
        assert {"name": name, "value": value} in container["env"]
    (scheduler,) = spec["spec"]["scheduler"]["spec"]["containers"]
    limit = "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT"
    assert {"name": limit, "value": "90 s"} in scheduler["env"]
    assert spec["spec"]["idleTimeout"] == 600


# --------------------------------------------------------------------------- exit codes


def test_exit_codes_are_documented() -> None:
    shown = " ".join(CliRunner().invoke(cli.main, ["run", "--help"]).stdout.split())
    table = (Path(__file__).parent.parent / "deploy" / "README.md").read_text()
    assert list(MEANINGS) == list(Exit)
    for code, meaning in MEANINGS.items():
        assert f"{code.value}: {meaning}" in shown
        assert f"| {code.value} | {meaning} |" in table


def test_init_writes_the_example_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(cli.main, ["init"])
    assert first.stdout == "job.toml: change it, then dmf run --dry-run job.toml\n"
    assert Path("job.toml").read_text(encoding="utf-8") == EXAMPLE
    second = CliRunner().invoke(cli.main, ["init"])
    assert second.stderr == "Error: job.toml exists; name another file\n"
    assert second.exit_code == 1

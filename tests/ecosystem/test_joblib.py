"""joblib's backend "pydist", with joblib and scikit-learn as users have them."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import pydist as d
from support import nap, run_script

joblib = pytest.importorskip("joblib", reason="joblib is not installed")

import pydist.joblib as backend  # noqa: E402

Parallel, delayed = joblib.Parallel, joblib.delayed


@pytest.fixture
def on_pydist(workers):
    with joblib.parallel_config(backend="pydist"):
        yield workers


def square(x: float) -> float:
    return x * x


def where() -> int:
    time.sleep(0.005)
    return os.getpid()


def check_equals_twice(array: np.ndarray) -> bool:
    array *= 2
    return bool((array == 2).all())


def nested(n: int) -> list[int]:
    return Parallel(n_jobs=2)(delayed(square)(i) for i in range(n))


def fail_at(n: int, at: int) -> int:
    if n == at:
        raise ValueError(f"element {n}")
    return n


def test_tasks_run_on_workers_in_order(on_pydist):
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(200)) == [i * i for i in range(200)]
    seen = set(Parallel(n_jobs=-1, batch_size=1)(delayed(where)() for _ in range(40)))
    assert seen == {d.remotecall_fetch(os.getpid, pid) for pid in on_pydist}


def test_lambdas_and_closures(on_pydist):
    n = 3
    assert Parallel(n_jobs=2)(delayed(lambda x: x + n)(i) for i in range(10)) == list(range(3, 13))


def test_numbers_of_jobs(on_pydist):
    made = backend.PydistBackend()
    assert made.effective_n_jobs(-1) == 2
    assert made.effective_n_jobs(-2) == 1
    assert made.effective_n_jobs(None) == 1
    assert made.effective_n_jobs(1) == 1
    assert made.effective_n_jobs(64) == 2
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        made.effective_n_jobs(0)
    assert joblib.effective_n_jobs(-1) == 2
    assert Parallel(n_jobs=1)(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
@pytest.mark.parametrize("pre_dispatch", ["all", "2*n_jobs", 3])
def test_batches(on_pydist, batch_size, pre_dispatch):
    made = Parallel(n_jobs=2, batch_size=batch_size, pre_dispatch=pre_dispatch)
    assert made(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]


def test_batches_of_short_tasks_grow(on_pydist):
    with Parallel(n_jobs=2) as made:
        made(delayed(square)(i) for i in range(3000))
        assert made._backend._effective_batch_size > 1


def test_generators(on_pydist):
    values = Parallel(n_jobs=2, return_as="generator")(delayed(square)(i) for i in range(20))
    assert next(values) == 0
    assert list(values) == [i * i for i in range(1, 20)]
    unordered = Parallel(n_jobs=2, return_as="generator_unordered")(delayed(square)(i) for i in range(20))
    assert sorted(unordered) == [i * i for i in range(20)]


def test_a_generator_that_is_dropped_early(on_pydist):
    values = Parallel(n_jobs=2, return_as="generator", pre_dispatch=4)(
        delayed(nap)(0.01) for i in range(1000)
    )
    assert next(values) == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values.close()
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_the_first_error_ends_it(on_pydist):
    with pytest.raises(ValueError, match="element 3") as info:
        Parallel(n_jobs=2, batch_size=1)(delayed(fail_at)(i, 3) for i in range(100))
    assert type(info.value) is ValueError
    assert "in fail_at" in str(info.value.__cause__)
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_an_abort_interrupts_what_runs_and_makes_new_workers_ready(on_pydist):
    def run(n):
        if n == 1:
            raise ValueError("first")
        nap(60)

    with Parallel(n_jobs=2, batch_size=1) as made:
        before = made._backend._workers
        with pytest.raises(ValueError, match="first"):
            made(delayed(run)(n) for n in range(2))
        assert made._backend._workers is not before
        assert made(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_a_timeout(on_pydist):
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.1, batch_size=1)(delayed(nap)(60) for _ in range(2))
    assert Parallel(n_jobs=2)(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_arrays_arrive_writable(on_pydist):
    array = np.ones(300_000)
    made = Parallel(n_jobs=2, batch_size=1)
    assert made(delayed(check_equals_twice)(array) for _ in range(4)) == [True] * 4
    assert (array == 1).all()


def test_parallel_inside_a_task(on_pydist):
    results = Parallel(n_jobs=2, batch_size=1)(delayed(nested)(n) for n in range(6))
    assert results == [[i * i for i in range(n)] for n in range(6)]


def level_of(depth: int) -> list[tuple[str, int | None, int]]:
    made = Parallel()
    here = (type(made._backend).__name__, made._backend.nesting_level, made._effective_n_jobs())
    return [here] if not depth else [here, *Parallel(n_jobs=2)(delayed(level_of)(depth - 1) for _ in "a")[0]]


def test_a_parallel_that_asks_for_no_jobs_runs_alone_in_a_task(on_pydist):
    levels = Parallel(n_jobs=2)(delayed(level_of)(2) for _ in range(2))
    assert levels == [[("PydistBackend", 1, 1), ("SequentialBackend", 2, 1), ("SequentialBackend", 2, 1)]] * 2


def endless(n_jobs: int | None) -> None:
    Parallel(n_jobs=n_jobs)(delayed(endless)(n_jobs) for _ in range(2))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_endless_recursion_of_tasks_ends_with_an_error(on_pydist, n_jobs):
    with pytest.raises(RecursionError):
        endless(n_jobs)


def set_mark(text: str) -> None:
    d.__dict__["mark_of_a_test"] = text


def mark() -> object:
    return d.__dict__.pop("mark_of_a_test", None)


def test_an_initializer_runs_on_workers_that_are_there(workers):
    with joblib.parallel_config(backend="pydist", n_jobs=2, initializer=set_mark, initargs=("set",)):
        marks = Parallel(batch_size=1)(delayed(mark)() for _ in range(20))
    assert set(marks) <= {"set", None}
    assert marks.count("set") == 2
    assert [d.remotecall_fetch(mark, pid) for pid in workers] == [None] * len(workers)


def test_the_backend_travels(workers):
    made = pickle.loads(pickle.dumps(backend.PydistBackend(2, inner_max_num_threads=3)))
    assert type(made) is backend.PydistBackend
    assert (made.nesting_level, made.inner_max_num_threads) == (2, 3)


def test_shared_memory_is_not_promised(on_pydist):
    total: list[int] = []
    Parallel(n_jobs=2, require="sharedmem")(delayed(total.append)(i) for i in range(5))
    assert sorted(total) == list(range(5))


def test_own_workers_stay_for_the_next_and_end_with_the_script():
    done = run_script("""
        import os
        import joblib
        import pydist as d
        import pydist.joblib

        def threads():
            return os.environ["OMP_NUM_THREADS"], os.getpid()

        with joblib.parallel_config(backend="pydist", inner_max_num_threads=3):
            first = joblib.Parallel(n_jobs=2)(joblib.delayed(threads)() for _ in range(20))
            second = joblib.Parallel(n_jobs=2)(joblib.delayed(threads)() for _ in range(20))
        print({number for number, _ in first + second})
        print(len({pid for _, pid in first + second}), os.getpid() in dict(map(reversed, first)))
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("{'3'}\n2 False\n", "", 0)


def test_a_task_that_kills_its_worker_is_an_error():
    done = run_script("""
        import concurrent.futures, os
        import joblib
        import pydist.joblib
        with joblib.parallel_config(backend="pydist", n_jobs=2):
            try:
                joblib.Parallel()(joblib.delayed(os._exit)(3) for _ in range(2))
            except concurrent.futures.BrokenExecutor as error:
                print("exit code 3" in str(error))
            print(joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3)))
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n[0, 1, 2]\n", "", 0)


def test_a_parallel_that_fails_ends_no_other():
    done = run_script("""
        import threading, time
        import joblib
        import pydist.joblib

        def slow(n):
            time.sleep(0.02)
            return n

        def bad(n):
            raise ValueError(n)

        def run(f):
            with joblib.parallel_config(backend="pydist", n_jobs=2):
                results.append(joblib.Parallel(batch_size=1)(joblib.delayed(f)(n) for n in range(40)))

        results = []
        thread = threading.Thread(target=run, args=(slow,))
        thread.start()
        while pydist.workers() == [1]:
            time.sleep(0.01)
        for _ in range(3):
            try:
                run(bad)
            except ValueError:
                pass
        thread.join()
        print(results == [list(range(40))])
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_without_joblib_the_extra_is_named():
    done = run_script("""
        import sys
        class Without:
            def find_spec(self, name, path, target=None):
                if name == "joblib":
                    raise ModuleNotFoundError("No module named 'joblib'", name="joblib")
        sys.meta_path.insert(0, Without())
        try:
            import pydist.joblib
        except ImportError as error:
            print(error)
        """)
    assert (done.stdout, done.stderr) == (
        'pydist.joblib needs joblib, which is not installed: pip install "pydist[joblib]"\n',
        "",
    )


def test_importing_joblib_costs_nothing_where_it_is_not_wanted():
    code = "import sys, pydist; assert 'joblib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestScikitLearn:
    """Searches, scores and forests of scikit-learn on workers."""

    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")

    @pytest.fixture
    def data(self):
        from sklearn.datasets import make_classification

        return make_classification(n_samples=120, n_features=6, random_state=0)

    def test_grid_search(self, on_pydist, data):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        grid = {"C": [0.1, 1.0, 10.0]}
        there = GridSearchCV(LogisticRegression(), grid, cv=3, n_jobs=2).fit(*data)
        here = GridSearchCV(LogisticRegression(), grid, cv=3, n_jobs=1).fit(*data)
        assert there.best_params_ == here.best_params_
        assert np.array_equal(there.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"])

    def test_cross_val_score(self, on_pydist, data):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score

        there = cross_val_score(LogisticRegression(), *data, cv=4, n_jobs=2)
        assert np.array_equal(there, cross_val_score(LogisticRegression(), *data, cv=4))

    def test_random_forest(self, on_pydist, data):
        from sklearn.ensemble import RandomForestClassifier

        there = RandomForestClassifier(20, random_state=0, n_jobs=2).fit(*data)
        here = RandomForestClassifier(20, random_state=0).fit(*data)
        assert np.array_equal(there.predict_proba(data[0]), here.predict_proba(data[0]))

"""Measures trees here beside XGBoost, LightGBM and ONNX Runtime: one thread each, the same rows, printed tables in Markdown.

    python3 bench/engines.py [ROUNDS]

Makes its own environment under ~/.cache/hotserve and models in its temporary folder; `cargo bench` builds the program
(CARGO_TARGET_DIR is kept). In each round every engine is measured once, after the others; a round's number is the sum
of the best times of sections of the calls, a ratio is that of the bests of all rounds, and the spread is that of the
rounds' ratios. ONNX Runtime and XGBoost's inplace_predict are called by way of Python, the C APIs by way of ctypes.
`hotserve` is the model as its loader makes it; the paths are its trees alone, as each kind of processor goes through
them. A load is the best of several, and the first of a process of its own.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path.home() / ".cache" / "hotserve" / "bench-venv"
PACKAGES = ["numpy", "scipy", "scikit-learn", "xgboost", "lightgbm", "onnx", "onnxruntime", "onnxmltools", "skl2onnx"]
REPO = Path(__file__).resolve().parent.parent
FILES = CACHE / "models"
FEATURES, TREES, ROWS = 28, 500, 4096
SIZES = [1, 8, 64, 1024]
PASSES, SECTIONS = 4, 512

for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]:
    os.environ[variable] = "1"


def main():
    python = CACHE / "bin" / "python"
    if Path(sys.prefix) != CACHE:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", CACHE], check=True)
            subprocess.run([CACHE / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
        os.execv(python, [python, __file__, *sys.argv[1:]])

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    FILES.mkdir(exist_ok=True)
    program = build()
    print(f"{time.strftime('%F')}, {processor()}, one thread. Rounds: {rounds}.")
    for name, make in [("xgboost", xgboost_model), ("lightgbm", lightgbm_model), ("lightgbm-categories", categories)]:
        ours, peers, rows = make(name)
        compare(name, program, ours, peers, rows, rounds)
    large(program)


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unknown processor")


def loads(library, statement):
    """Milliseconds: the best of several loads, and the first of a process that has imported the library."""
    code = "import sys, time\nimport LIBRARY\nfrom pathlib import Path\nfor _ in range(9):\n"
    code += "    t = time.perf_counter()\n    STATEMENT\n    print((time.perf_counter() - t) * 1e3)\n"
    code = code.replace("LIBRARY", library).replace("STATEMENT", statement)
    times = [float(line) for line in subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()]
    return min(times), times[0]


def build():
    command = ["cargo", "bench", "-q", "-p", "hotserve-models", "--bench", "forest", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines if line.startswith("{")]
    return [a["executable"] for a in artifacts if a.get("target", {}).get("name") == "forest" and a.get("executable")][-1]


def data(gaps=0.0):
    import numpy as np

    rng = np.random.default_rng(28)
    X = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
    y = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + X[:, 3:12].sum(axis=1) * 0.3 + rng.normal(size=len(X)) > 0
    X[rng.random(X.shape) < gaps] = np.nan
    return X, y.astype(np.float32)


def xgboost_model(name):
    import numpy as np
    import xgboost as xgb

    path = FILES / f"{name}.ubj"
    X, y = data()
    if not path.exists():
        parameters = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.05, "nthread": 1}
        xgb.train(parameters, xgb.DMatrix(X, y), TREES).save_model(path)
    booster = xgb.Booster({"nthread": 1}, model_file=path)
    load = loads("xgboost", f"xgboost.Booster({{'nthread': 1}}, model_file={str(path)!r})")
    rows = np.ascontiguousarray(X[:ROWS])
    (FILES / f"{name}.json").write_text(json.dumps(xgboost_trees(booster)))

    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    onnx = FILES / f"{name}.onnx"
    if not onnx.exists():
        onnx.write_bytes(convert_xgboost(booster, initial_types=[("input", FloatTensorType([None, FEATURES]))]).SerializeToString())
    peers = {
        "XGBoost, inplace_predict": (lambda x: booster.inplace_predict(x), load),
        "XGBoost, C API": (xgboost_c(booster), load),
        "ONNX Runtime": onnxruntime(onnx),
    }
    return path, peers, rows


def xgboost_trees(booster):
    """The trees of XGBoost's own JSON as the program reads them, in FP32."""
    import math

    import numpy as np

    narrow = lambda number: float(np.float32(number))
    learner = json.loads(booster.save_raw("json"))["learner"]
    trees = []
    for tree in learner["gradient_booster"]["model"]["trees"]:
        arrays = [tree[key] for key in ["split_indices", "split_conditions", "left_children", "right_children", "default_left"]]
        trees.append([[narrow(at)] if left < 0 else [feature, narrow(at), left, right, bool(missing)]
                      for feature, at, left, right, missing in zip(*arrays)])
    base = float(str(learner["learner_model_param"]["base_score"]).strip("[]"))
    return {"width": FEATURES, "fp32": True, "base": math.log(base / (1 - base)), "trees": trees}


def xgboost_c(booster):
    """XGBoosterPredictFromDense with everything that can be made beforehand made beforehand."""
    import numpy as np
    import xgboost.core

    lib = xgboost.core._LIB
    config = b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN, "strict_shape": false}'
    shape, dim, result = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.POINTER(ctypes.c_float)()
    out = [ctypes.byref(shape), ctypes.byref(dim), ctypes.byref(result)]
    interfaces = {}

    def ask(x):
        key = x.ctypes.data
        if (key, len(x)) not in interfaces:
            array = {"data": [key, True], "shape": x.shape, "typestr": "<f4", "version": 3}
            interfaces[key, len(x)] = json.dumps(array).encode()
        if lib.XGBoosterPredictFromDense(booster.handle, interfaces[key, len(x)], config, None, *out):
            raise RuntimeError(lib.XGBGetLastError())
        return np.ctypeslib.as_array(result, (len(x),))

    return ask


def onnxruntime(path):
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = loads("onnxruntime", f"onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])")
    outputs = [output.name for output in session.get_outputs() if "float" in output.type][:1]
    name = session.get_inputs()[0].name

    def ask(x):
        return np.asarray(session.run(outputs, {name: x})[0])[:, -1]

    return ask, load


def lightgbm_model(name, categories=()):
    import lightgbm as lgb
    import numpy as np

    path = FILES / f"{name}.txt"
    X, y = data(gaps=0.1 if categories else 0.0)
    rng = np.random.default_rng(3)
    for column in categories:
        codes = rng.integers(0, 40, len(X))
        y = np.where(rng.random(40)[codes] > 0.8, 1 - y, y)
        X[:, column] = codes
    if not path.exists():
        parameters = {"objective": "binary", "num_leaves": 63, "learning_rate": 0.05, "num_threads": 1, "verbose": -1}
        lgb.train(parameters, lgb.Dataset(X, y, categorical_feature=list(categories)), TREES).save_model(path)
    booster = lgb.Booster(model_file=path)
    load = loads("lightgbm", f"lightgbm.Booster(model_file={str(path)!r})")
    rows = np.ascontiguousarray(X[:ROWS].astype(np.float64))

    (FILES / f"{name}.json").write_text(json.dumps({"width": FEATURES, "trees": [plain(t["tree_structure"]) for t in booster.dump_model()["tree_info"]]}))

    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    peers = {"LightGBM, C API": (lightgbm_c(path), load)}  # SingleRowFast for one row
    onnx = FILES / f"{name}.onnx"
    try:
        if not onnx.exists():
            types = [("input", FloatTensorType([None, FEATURES]))]
            onnx.write_bytes(convert_lightgbm(booster, initial_types=types, zipmap=False).SerializeToString())
        ask, load = onnxruntime(onnx)
        narrow = {}

        def ask_narrow(x):
            key = (x.ctypes.data, len(x))
            if key not in narrow:
                narrow[key] = x.astype(np.float32)
            return ask(narrow[key])

        peers["ONNX Runtime"] = (ask_narrow, load)
    except Exception as error:
        print(f"{name}: no ONNX: {error!r:.200}")
    return path, peers, rows


def categories(name):
    return lightgbm_model(name, categories=(20, 21, 22, 23))


def plain(root):
    """A tree of dump_model as the program reads it: `x < the next number` is LightGBM's `x <= threshold`."""
    import math

    nodes, open_ = [None], [(root, 0)]
    while open_:
        node, at = open_.pop()
        if "leaf_value" in node and "split_feature" not in node:
            nodes[at] = [node["leaf_value"]]
            continue
        left, right = node["left_child"], node["right_child"]
        nan = node["missing_type"] == "NaN"
        if node["decision_type"] == "==":
            # What is in the set goes left there, and right here; a missing value is in no set.
            split, missing_left = [int(c) for c in node["threshold"].split("||")], True
            left, right = right, left
        else:
            split = math.nextafter(float(node["threshold"]), math.inf)
            missing_left = node["default_left"] if nan else 0.0 < split
        nodes += [None, None]
        nodes[at] = [node["split_feature"], split, len(nodes) - 2, len(nodes) - 1, bool(missing_left)]
        open_ += [(left, len(nodes) - 2), (right, len(nodes) - 1)]
    return nodes


def lightgbm_c(path):
    """SingleRowFast for one row, PredictForMat for more; probabilities."""
    import lightgbm as lgb
    import numpy as np

    lib = lgb.basic._LIB
    handle, count = ctypes.c_void_p(), ctypes.c_int()
    parameters = b"num_threads=1 verbose=-1"
    check = lambda code: code and (_ for _ in ()).throw(RuntimeError(lib.LGBM_GetLastError()))
    check(lib.LGBM_BoosterCreateFromModelfile(str(path).encode(), ctypes.byref(count), ctypes.byref(handle)))
    fast = ctypes.c_void_p()
    check(lib.LGBM_BoosterPredictForMatSingleRowFastInit(
        handle, 0, 0, -1, 1, ctypes.c_int32(FEATURES), ctypes.c_char_p(parameters), ctypes.byref(fast)))
    length, out = ctypes.c_int64(), np.zeros(ROWS)
    length_, out_ = ctypes.byref(length), out.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    many = lib.LGBM_BoosterPredictForMat
    pointers = {}

    def ask(x):
        pointer = pointers.get((x.ctypes.data, len(x)))
        if pointer is None:
            pointer = pointers[x.ctypes.data, len(x)] = ctypes.c_void_p(x.ctypes.data)
        if len(x) == 1:
            check(lib.LGBM_BoosterPredictForMatSingleRowFast(fast, pointer, length_, out_))
        else:
            check(many(handle, pointer, 1, ctypes.c_int32(len(x)), ctypes.c_int32(FEATURES), 1, 0, 0, -1,
                       ctypes.c_char_p(parameters), length_, out_))
        return out[: len(x)]

    return ask


def best_of(ask, parts, passes):
    """Seconds for all parts: the best of a few passes, for each section of the calls by itself, as the program does it."""
    section = -(-len(parts) // SECTIONS)  # about a millisecond: a whole pass is always disturbed by others
    sections = [parts[at : at + section] for at in range(0, len(parts), section)]
    best = [1e9] * len(sections)
    for _ in range(passes):
        for at, some in enumerate(sections):
            started = time.perf_counter()
            for part in some:
                ask(part)
            best[at] = min(best[at], time.perf_counter() - started)
    return sum(best)


def compare(name, program, ours, peers, rows, rounds):
    import numpy as np

    file = FILES / f"{name}.rows"
    rows.astype("<f8").tofile(file)
    times, answers, load = {}, {}, {}
    parts = {size: [rows[at : at + size] for at in range(0, len(rows), size)] for size in SIZES}
    trees = FILES / f"{name}.json"
    commands = {"hotserve": [program, ours, file]}
    commands |= {f"trees, {path}": [program, trees, file, f"--path={path}"] for path in ["Avx512", "Avx2", "Bytes", "Plain"]}
    memory = {}
    for _ in range(rounds):
        for engine, command in commands.items():
            run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if run.returncode:
                continue  # a path that this machine has not
            report = json.loads(run.stdout)
            answers[engine] = np.array(report["answers"])
            memory[engine] = report["bytes"]
            if engine == "hotserve":
                best, first = load.get(engine, (1e9, 1e9))
                load[engine] = min(best, report["load_ms"]), min(first, report["first_ms"])
            else:
                answers[engine] = 1 / (1 + np.exp(-answers[engine]))
            for size in SIZES:
                times.setdefault((engine, size), []).append(report[f"rows_{size}"])
        for peer, (ask, ms) in peers.items():
            load[peer] = ms
            answers[peer] = np.array(ask(rows[:64]))
            for size in SIZES:
                ask(parts[size][0])
                # What the loop and the call of Python itself take is not the engine's.
                best = best_of(ask, parts[size], PASSES) - best_of(lambda x: None, parts[size], PASSES)
                times.setdefault((peer, size), []).append(best * 1e9 / len(rows))

    print(f"\n{name}: {TREES} trees, {FEATURES} features, {memory['hotserve'] / 1e6:.2f} MB here. Nanoseconds a row, by rows of a")
    print("call, and how many times hotserve's (least–most of the rounds); loads in ms.\n")
    print("| |" + "".join(f" {size} |" for size in SIZES) + " load | first load | difference |")
    print("|---|" + "---|" * (len(SIZES) + 3))
    for engine in [*(engine for engine in commands if engine in answers), *peers]:
        line = f"| {engine} |"
        for size in SIZES:
            mine, other = times["hotserve", size], times[engine, size]
            ratios = sorted(b / a for a, b in zip(mine, other))
            ratio = f", {min(other) / min(mine):.1f}× ({ratios[0]:.1f}–{ratios[-1]:.1f})" if engine in peers else ""
            line += f" {min(other):.0f}{ratio} |"
        best, first = (f"{ms:.1f}" for ms in load[engine]) if engine in load else ("", "")
        print(f"{line} {best} | {first} | {np.nanmax(np.abs(answers[engine] - answers['hotserve'])):.0e} |")
    sys.stdout.flush()


def large(program):
    """A text of some 100 MB, of the trees of the other one again and again: the time of its load, and what it takes."""
    path, times = FILES / "lightgbm-large.txt", 30
    if not path.exists():
        head, *trees = (FILES / "lightgbm.txt").read_text().partition("\nend of trees")[0].split("\nTree=")
        head = "\n".join(line for line in head.split("\n") if not line.startswith("tree_sizes="))
        trees = [f"\nTree={at}\n" + tree.partition("\n")[2] for at, tree in enumerate(trees * times)]
        path.write_text(head + "\n" + "".join(trees) + "\nend of trees\n")
    run = subprocess.run([program, path, "--memory"], check=True, stdout=subprocess.PIPE)
    report = json.loads(run.stdout)
    load = loads("lightgbm", f"lightgbm.Booster(model_file={str(path)!r})")
    size, held, peak = path.stat().st_size, report["bytes"], report["peak"]
    print(f"\nlightgbm, {size / 1e6:.0f} MB of text ({TREES * times} trees): {held / 1e6:.0f} MB in memory. Its load takes "
          f"{report['load_ms']:.0f} ms (LightGBM's {load[0]:.0f})")
    print(f"and {peak / 1e6:.0f} MB at the most, {peak / held:.1f} times what is kept; {(peak + size) / held:.1f} times with the text itself.")


if __name__ == "__main__":
    main()

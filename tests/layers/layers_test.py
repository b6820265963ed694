"""Reads every #include of the project and refuses an edge that cmake/layers.txt does not allow.

Also refuses LibTorch outside the folders that may link it, and gRPC below common/rpc.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
RANKS = {
    "rank0": ["common/status", "common/sync", "common/log", "common/clock", "common/random"],
    "rank1": [
        "common/config", "common/metrics", "common/trace", "common/redis", "common/text",
        "common/weights", "common/auth", "common/crypto", "common/scoring", "common/dataset",
        "common/benchmarks",
    ],
}
TORCH_FOLDERS = ("kernels", "common/model", "common/memory", "common/snapshot", "common/evolution",
                 "services/executor")
GRPC_FOLDERS = ("common/rpc", "services/")


def read_layers(path):
    layers = {}
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        folder, allowed = line.split(":")
        layers[folder] = set()
        for word in allowed.split():
            layers[folder].update(RANKS.get(word, [word]))
    return layers


def folder_of(path, layers):
    """Returns the layer that a path relative to the root lies in, or None."""
    for folder in layers:
        if path.startswith(folder + "/"):
            return folder
    return None


def is_test_support(name):
    return name.startswith("tests/")


def violations(root, layers):
    found = []
    files = [p for top in ("common", "kernels", "services") for p in (root / top).rglob("*")
             if p.suffix in (".h", ".cc", ".cu", ".cuh")]
    for path in sorted(files):
        name = str(path.relative_to(root))
        folder = folder_of(name, layers)
        if folder is None:
            found.append(f"{name}: its folder is not in cmake/layers.txt")
            continue
        is_test = bool(re.search(r"_(test|bench|fixture)(_\w+)?\.(h|cc|cu)$", path.name)) or "testdata" in name
        for target in INCLUDE.findall(path.read_text(errors="replace")):
            to = folder_of(target, layers)
            allowed = to == folder or to in layers[folder] or target in layers[folder]
            if to is not None and not allowed and not is_test:
                found.append(f"{name}: {folder} may not include {target}")
            if is_test_support(target) and not is_test:
                found.append(f"{name}: only tests may include {target}")
            if re.match(r"(ATen|c10|torch|caffe2)/", target) and not is_test:
                if not folder.startswith(TORCH_FOLDERS):
                    found.append(f"{name}: LibTorch is not for {folder} ({target})")
            if target == "torch/torch.h":
                found.append(f"{name}: <torch/torch.h> costs 12 s; include what is used")
            if re.match(r"(grpcpp|grpc)/", target) and not is_test:
                if not folder.startswith(GRPC_FOLDERS):
                    found.append(f"{name}: gRPC is not for {folder} ({target})")
    return found


def main():
    layers = read_layers(ROOT / "cmake" / "layers.txt")
    # The check must be able to fail: a made-up edge is refused.
    assert "services/memory" not in layers["services/gateway"]
    found = violations(ROOT, layers)
    for line in found:
        print(line)
    print(f"{len(found)} forbidden includes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

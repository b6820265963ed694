"""Starts a real `mneme up` in a temporary data folder for the client tests, and ends it."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

BIN = pathlib.Path(os.environ.get("MNEME_BIN", "build/release/bin"))
MODEL = "smollm2-135m-instruct"


class MnemeUp:
    """A running system; `info` is the line that `mneme up --json` printed."""

    def __init__(self, *arguments):
        self.data = tempfile.mkdtemp(prefix="mneme-clients-")
        self.log = open(os.path.join(self.data, "up.log"), "wb")
        self.process = subprocess.Popen(
            [str(BIN / "mneme"), "up", "--json", "--data", self.data, "--http-port", "0",
             "--grpc-port", "0", *arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(timeout=30)
            raise RuntimeError("mneme up did not start: " + self.tail())
        self.info = json.loads(line)

    @property
    def base_url(self):
        return f"http://{self.info['http']}/v1"

    @property
    def grpc(self):
        return self.info["grpc"]

    def metrics(self, service):
        """Returns a service's metrics as {name with labels: value}."""
        import urllib.request

        address = self.info["services"][service]["metrics"]
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
        values = {}
        for row in text.splitlines():
            if row and not row.startswith("#"):
                name, value = row.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def pids(self):
        """Returns {service: pid} as of now."""
        out = subprocess.run([str(BIN / "mneme"), "status", "--json", "--data", self.data],
                             capture_output=True, text=True, timeout=30)
        return {name: s["pid"] for name, s in json.loads(out.stdout)["services"].items()}

    def tail(self):
        text = ""
        folder = pathlib.Path(self.data)
        for path in [folder / "up.log", *sorted(folder.glob("logs/*.log"))]:
            text += f"\n--- {path.name}\n" + "\n".join(
                path.read_text(errors="replace").splitlines()[-20:])
        return text

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
            self.log.close()
            shutil.rmtree(self.data, ignore_errors=True)

"""Clients made from protos/ by others' tools, and grpcurl, against a real `mneme up`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from mneme_up import MODEL, MnemeUp

SOURCE = pathlib.Path(os.environ.get("MNEME_SOURCE", pathlib.Path(__file__).resolve().parents[2]))
CACHE = pathlib.Path(os.environ.get("MNEME_CACHE", os.path.expanduser("~/.cache/mneme")))
ANSWER = "The capital of France is Paris."
PUBLIC_PROTOS = ["mneme/inference/v1/inference.proto", "mneme/gateway/v1/chat.proto",
                 "mneme/gateway/v1/session.proto", "mneme/gateway/v1/model.proto"]


class GrpcClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.generated = tempfile.mkdtemp(prefix="mneme-python-client-")
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE / 'protos'}",
                        f"--python_out={cls.generated}", f"--grpc_python_out={cls.generated}",
                        *PUBLIC_PROTOS], check=True)
        sys.path.insert(0, cls.generated)
        cls.up = MnemeUp("--compute", "float32")
        cls.channel = grpc.insecure_channel(cls.up.grpc)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.up.stop()
        shutil.rmtree(cls.generated)

    def chat(self, text="What is the capital of France?", **arguments):
        from mneme.gateway.v1 import chat_pb2, chat_pb2_grpc
        from mneme.inference.v1 import inference_pb2

        arguments.setdefault("sampling", inference_pb2.Sampling(temperature=0, max_tokens=16))
        request = chat_pb2.ChatRequest(
            model=MODEL, messages=[inference_pb2.Message(role="user", content=text)], **arguments)
        return list(chat_pb2_grpc.ChatServiceStub(self.channel).Chat(request, timeout=120))

    def test_python_client_chats(self):
        events = self.chat()
        kinds = [e.WhichOneof("event") for e in events]
        self.assertEqual(kinds[0], "started")
        self.assertEqual(kinds[-1], "done")
        self.assertIn("usage", kinds)
        self.assertIn("receipt", kinds)
        self.assertEqual("".join(e.text_delta for e in events), ANSWER)

    def test_python_client_keeps_a_session(self):
        from mneme.gateway.v1 import session_pb2, session_pb2_grpc

        self.chat("My name is Ada.", session_id="grpc-1")
        events = self.chat("What is my name?", session_id="grpc-1")
        self.assertEqual(events[-1].done.version, 2)
        sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        got = sessions.GetSession(
            session_pb2.GetSessionRequest(session_id="grpc-1", with_messages=True))
        self.assertEqual([m.role for m in got.messages], ["user", "assistant"] * 2)
        sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id="grpc-1"))
        with self.assertRaises(grpc.RpcError) as caught:
            sessions.GetSession(session_pb2.GetSessionRequest(session_id="grpc-1"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_error_details_name_the_field(self):
        from mneme.inference.v1 import inference_pb2

        with self.assertRaises(grpc.RpcError) as caught:
            self.chat(sampling=inference_pb2.Sampling(temperature=-1))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        bad_request = error_details_pb2.BadRequest()
        details = rpc_status.from_call(caught.exception).details
        self.assertTrue(details[0].Unpack(bad_request))
        self.assertIn("temperature", bad_request.field_violations[0].field)

    def test_health(self):
        stub = health_pb2_grpc.HealthStub(self.channel)
        self.assertEqual(stub.Check(health_pb2.HealthCheckRequest()).status,
                         health_pb2.HealthCheckResponse.SERVING)

    def test_grpcurl_with_reflection(self):
        grpcurl = CACHE / "go-tools" / "grpcurl"
        if not grpcurl.exists():
            self.skipTest("grpcurl is not there: install Go and run deploy/setup.sh --test")
        run = lambda *a: subprocess.run([str(grpcurl), "-plaintext", *a], check=True,
                                        capture_output=True, text=True, timeout=120).stdout
        services = run(self.up.grpc, "list").split()
        self.assertIn("mneme.gateway.v1.ChatService", services)
        self.assertIn("grpc.health.v1.Health", services)
        body = json.dumps({"model": MODEL, "sampling": {"temperature": 0, "max_tokens": 16},
                           "messages": [{"role": "user",
                                         "content": "What is the capital of France?"}]})
        out = run("-d", body, self.up.grpc, "mneme.gateway.v1.ChatService/Chat")
        decoder, events = json.JSONDecoder(), []
        while out.strip():
            event, end = decoder.raw_decode(out.strip())
            events.append(event)
            out = out.strip()[end:]
        # Descriptors that come by reflection carry no JSON names: grpcurl prints the proto's own.
        self.assertEqual("".join(e.get("text_delta", "") for e in events), ANSWER)

    def test_go_client(self):
        tools = CACHE / "go-tools"
        if shutil.which("go") is None or not tools.exists():
            self.skipTest("no Go toolchain: the Go client is not tested")
        with tempfile.TemporaryDirectory(prefix="mneme-go-client-") as folder:
            shutil.copytree(SOURCE / "tests/clients/go", folder, dirs_exist_ok=True)
            path = f"{tools}:{os.environ['PATH']}"
            names = {p: f"mneme.test/client/{os.path.dirname(p)};{os.path.dirname(p).split('/')[1]}v1"
                     for p in PUBLIC_PROTOS}
            options = [f"--{kind}_opt=M{p}={name}" for p, name in names.items()
                       for kind in ("go", "go-grpc")]
            subprocess.run(
                [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE / 'protos'}",
                 f"--go_out={folder}", f"--go-grpc_out={folder}",
                 "--go_opt=module=mneme.test/client", "--go-grpc_opt=module=mneme.test/client",
                 *options, *PUBLIC_PROTOS],
                check=True, env={**os.environ, "PATH": path})
            out = subprocess.run(["go", "run", "-mod=mod", ".", self.up.grpc, MODEL], cwd=folder,
                                 check=True, capture_output=True, text=True, timeout=300)
            self.assertEqual(out.stdout, ANSWER)


if __name__ == "__main__":
    unittest.main(verbosity=2)

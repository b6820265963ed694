"""The official `openai` Python package against a real `mneme up`."""

import unittest

import openai

from mneme_up import MODEL, MnemeUp

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.up = MnemeUp("--compute", "float32")
        cls.client = openai.OpenAI(base_url=cls.up.base_url, api_key="none", max_retries=0,
                                   timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.up.stop()

    def chat(self, **arguments):
        arguments.setdefault("messages", QUESTION)
        arguments.setdefault("model", MODEL)
        arguments.setdefault("max_tokens", 16)
        arguments.setdefault("temperature", 0)
        return self.client.chat.completions.create(**arguments)

    def test_chat_answers_what_the_reference_answers(self):
        reply = self.chat()
        self.assertEqual(reply.object, "chat.completion")
        self.assertEqual(reply.choices[0].message.role, "assistant")
        self.assertEqual(reply.choices[0].message.content, "The capital of France is Paris.")
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertEqual(reply.usage.prompt_tokens, 37)
        self.assertEqual(reply.usage.total_tokens,
                         reply.usage.prompt_tokens + reply.usage.completion_tokens)

    def test_stream_equals_whole_answer_and_ends_with_usage(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks
                          if c.choices and c.choices[0].finish_reason], ["stop"])
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_length_stop_seed_and_n(self):
        reply = self.chat(max_tokens=3)
        self.assertEqual(reply.choices[0].finish_reason, "length")
        self.assertEqual(reply.usage.completion_tokens, 3)
        reply = self.chat(stop=["France"])
        self.assertEqual(reply.choices[0].message.content, "The capital of ")
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        many = self.chat(n=3, temperature=1.2, seed=7, max_tokens=12)
        self.assertEqual([c.index for c in many.choices], [0, 1, 2])
        again = self.chat(n=3, temperature=1.2, seed=7, max_tokens=12)
        self.assertEqual([c.message.content for c in many.choices],
                         [c.message.content for c in again.choices])
        self.assertGreater(len({c.message.content for c in many.choices}), 1)

    def test_chat_logprobs(self):
        reply = self.chat(logprobs=True, top_logprobs=2)
        content = reply.choices[0].logprobs.content
        self.assertEqual(len(content), reply.usage.completion_tokens - 1)  # the end token has no text
        self.assertEqual("".join(t.token for t in content), reply.choices[0].message.content)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 2)
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=5)

    def test_completion_with_echo_and_logprobs(self):
        prompt = "The capital of France is"
        reply = self.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4,
                                               temperature=0, echo=True, logprobs=1)
        choice = reply.choices[0]
        self.assertTrue(choice.text.startswith(prompt))
        self.assertEqual("".join(choice.logprobs.tokens), choice.text)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(p <= 0 for p in choice.logprobs.token_logprobs[1:]))
        self.assertEqual(len(choice.logprobs.text_offset), len(choice.logprobs.tokens))
        stream = self.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4,
                                                temperature=0, stream=True)
        self.assertEqual(prompt + "".join(c.choices[0].text for c in stream if c.choices),
                         choice.text)

    def test_session_remembers(self):
        extra = {"session_id": "openai-1"}
        self.chat(messages=[{"role": "user", "content": "My name is Ada."}], extra_body=extra)
        reply = self.chat(messages=[{"role": "user", "content": "What is my name?"}],
                          extra_body=extra, max_tokens=24)
        whole = self.chat(messages=[{"role": "user", "content": "What is my name?"}], max_tokens=24)
        self.assertGreater(reply.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(reply.model_extra["mneme"]["committed_version"], 2)
        self.assertTrue(reply.model_extra["mneme"]["persisted"])

    def test_models(self):
        self.assertIn(MODEL, [m.id for m in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve(MODEL).object, "model")

    def test_errors_are_the_clients_own_exceptions(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")
        for bad in ({"messages": []}, {"temperature": -1}, {"n": 0}, {"top_p": 7},
                    {"messages": [{"role": "wizard", "content": "x"}]}, {"max_tokens": "many"},
                    {"messages": [{"role": "user", "content": "a " * 20000}]}):
            with self.assertRaises(openai.BadRequestError, msg=str(bad)[:80]) as caught:
                self.chat(**bad)
            self.assertTrue(caught.exception.message)
        with self.assertRaises(openai.APIStatusError) as caught:
            self.client.embeddings.create(model=MODEL, input="x")
        self.assertIn(caught.exception.status_code, (404, 501))
        self.assertEqual(self.chat().choices[0].finish_reason, "stop")  # the service goes on

    def test_abandoned_stream_leaves_no_page(self):
        stream = self.chat(stream=True, max_tokens=2000,
                           messages=[{"role": "user", "content": "Write a long story."}])
        next(iter(stream))
        stream.close()
        import time

        for _ in range(100):
            values = self.up.metrics("executor")
            used = [v for k, v in values.items() if "pages_used" in k]
            if used and used[0] == 0:
                return
            time.sleep(0.05)
        self.fail(f"pages are still used: {used}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
